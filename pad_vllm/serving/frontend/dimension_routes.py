"""GET /v1/pad/dimensions: what requests to this server may ask for, by name.

In: the front end's admission. Out: JSON. A client learns from it which dimensions there are, what they
mean, how strong guidance is by default, and what else the server offers.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from pad_vllm.request_limits import RequestLimits
from pad_vllm.serving.frontend.route_errors import PADRoute
from pad_vllm.serving.frontend.served_front_end import served_front_end

router = APIRouter(prefix="/v1/pad", route_class=PADRoute)


@router.get("/dimensions")
async def dimensions(request: Request) -> dict[str, Any]:
    """What requests may ask for."""
    admission = served_front_end(request)
    limits = admission.adapters.limits
    readings = admission.profiles and admission.profiles.readings
    return {
        "model": admission.base_name,
        "adapter": admission.adapters.default_name,
        "engine": limits.engine,
        "defaults": {
            "beta": limits.beta,
            "top_k": limits.top_k,
            "no_repeat": limits.no_repeat,
            "min_p": limits.min_p,
            "loop_price": limits.loop_price,
        },
        "max_beta": limits.max_beta,
        "max_top_k": limits.max_top_k,
        "dimensions": _with_sentences(limits),
        "prefixes": list(limits.prefixes),
        "instructions": admission.takes_instructions,
        "adapters": [
            {"name": name, "dimensions": _with_sentences(other)}
            for name, other in limits.other_adapters.items()
        ],
        "profiles": admission.profiles is not None,
        "sentences": readings is not None and readings.runs,
        "learns_from_conversations": _learns(admission.profiles),
        "jobs": admission.jobs is not None,
    }


def _learns(profiles: Any) -> bool:
    return profiles is not None and profiles.learner is not None


def _with_sentences(limits: RequestLimits) -> list[dict[str, str | None]]:
    """Each dimension with the sentence that taught it, None where none did."""
    return [{"name": name, "instruction": limits.sentences.get(name)} for name in limits.dimensions]
