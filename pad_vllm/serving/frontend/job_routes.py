"""Routes of dimension jobs: POST and GET /v1/pad/jobs, GET /v1/pad/jobs/{job}.

In: {"name", "sentence"}. Out: jobs as JSON, errors in vLLM's form. They run commands, so a server has them only
where its operator set `dimension_jobs`; below /v1 they need the server's API key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from pad_vllm.serving.frontend.dimension_jobs import DimensionJobs, JobRefused, LoadAdapter

JOBS_PATH = "/v1/pad/jobs"


class NewDimension(BaseModel):
    """Body of a POST."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    sentence: str


def job_router(jobs: DimensionJobs, loader: Callable[[Request], LoadAdapter]) -> APIRouter:
    """The routes.

    jobs: those of this server; loader: what loads an adapter into the server that a request came to.
    """
    router = APIRouter(prefix=JOBS_PATH)

    @router.post("")
    async def start(body: NewDimension, request: Request) -> JSONResponse:
        try:
            job = jobs.start(body.name, body.sentence, loader(request))
        except JobRefused as error:
            return _refusal(409, "ConflictError", str(error))
        except ValueError as error:
            return _refusal(400, "BadRequestError", str(error))
        return JSONResponse(job.as_json(), 202)

    @router.get("")
    async def every() -> dict[str, Any]:
        return {"jobs": [job.as_json() for job in jobs.jobs.values()]}

    @router.get("/{job}")
    async def one(job: str) -> JSONResponse:
        if job not in jobs.jobs:
            return _refusal(404, "NotFoundError", "no job has this number; GET /v1/pad/jobs lists them")
        return JSONResponse(jobs.jobs[job].as_json())

    return router


def _refusal(status: int, kind: str, message: str) -> JSONResponse:
    error = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": error}, status)
