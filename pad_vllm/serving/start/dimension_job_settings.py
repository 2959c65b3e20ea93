"""Whether a server can make dimensions from sentences, before it starts.

In: PAD's settings and the environment. Out: nothing, or a ValueError that names what is missing.
"""

from __future__ import annotations

import os

from pad_vllm.adapter.manifest import read_config
from pad_vllm.config import PADConfig

RUNTIME_ADAPTERS = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"
"""The variable with which vLLM lets clients load adapters; it then has one front end."""


def require_dimension_jobs_possible(pad: PADConfig) -> None:
    """Raises ValueError where `dimension_jobs` is set and a job's adapter could not be served."""
    if not pad.dimension_jobs:
        return
    named = "additional_config['pad']['dimension_jobs'] is true, and "
    if not pad.adapter_root:
        raise ValueError(
            f"{named}there is no adapter_root; accepted: a folder in which jobs write and from which clients "
            "may load adapters. Set adapter_root too, or start the server with pad-vllm play"
        )
    if pad.engine != "shared" or not pad.adapter or not read_config(pad.adapter).heads_only:
        raise ValueError(
            f"{named}a new dimension joins an adapter of heads only on the shared engine; accepted: such a "
            "server. Serve such an adapter, or leave dimension_jobs out"
        )
    if os.environ.get(RUNTIME_ADAPTERS, "").lower() not in ("1", "true"):
        raise ValueError(
            f"{named}{RUNTIME_ADAPTERS} is not True; accepted: a server that loads adapters while it runs. "
            f"Set it, or leave dimension_jobs out"
        )
