"""Routes of dimension jobs: POST and GET /v1/pad/jobs, GET /v1/pad/jobs/{job}.

In: {"name", "sentence"}. Out: jobs as JSON. They run commands, so they answer only where the operator set
`dimension_jobs`; below /v1 they need the server's API key.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from pad_vllm.serving.frontend.dimension_jobs import DimensionJobs, JobRefused
from pad_vllm.serving.frontend.route_errors import PADRoute, RefusedRequest
from pad_vllm.serving.frontend.served_front_end import served_front_end

router = APIRouter(prefix="/v1/pad/jobs", route_class=PADRoute)


class NewDimension(BaseModel):
    """Body of a POST."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    sentence: str


@router.post("", status_code=HTTPStatus.ACCEPTED)
async def start_job(body: NewDimension, request: Request) -> dict[str, Any]:
    """Begin to make a dimension."""
    jobs, adapters = _jobs(request), served_front_end(request).adapters

    async def load(name: str, folder: str) -> None:
        await adapters.load(request.app.state.engine_client, name, folder)

    try:
        return jobs.start(body.name, body.sentence, load).as_json()
    except JobRefused as error:
        raise RefusedRequest(HTTPStatus.CONFLICT, str(error)) from None


@router.get("")
async def every_job(request: Request) -> dict[str, Any]:
    """All jobs since the server began, the first one first."""
    return {"jobs": [job.as_json() for job in _jobs(request).jobs.values()]}


@router.get("/{number}")
async def one_job(number: str, request: Request) -> dict[str, Any]:
    """How far a job is."""
    job = _jobs(request).jobs.get(number)
    if job is None:
        raise RefusedRequest(
            HTTPStatus.NOT_FOUND, "no job has this number; GET /v1/pad/jobs lists them"
        )
    return job.as_json()


def _jobs(request: Request) -> DimensionJobs:
    """Those of this server. Raises RefusedRequest where it has none."""
    jobs: DimensionJobs | None = served_front_end(request).jobs
    if jobs is None:
        raise RefusedRequest(
            HTTPStatus.NOT_FOUND,
            "this server makes no dimensions; start it with pad-vllm play, or set dimension_jobs and "
            "adapter_root in additional_config['pad']",
        )
    return jobs
