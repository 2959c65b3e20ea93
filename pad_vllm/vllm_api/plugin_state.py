"""Whether PAD's plugin works in this process. Imports no vLLM.

vLLM does not catch what a plugin raises, so `pad_vllm.plugin.register` raises nothing. An engine with PAD
names its logits processor, and `require_registered` stands in front of that.
"""

from __future__ import annotations

import os

PLUGIN_NAME = "pad"
"""Of the entry point in group vllm.general_plugins."""

_outcomes: list[Exception | None] = []  # of the last `register` in this process, if there was one


def set_outcome(error: Exception | None) -> None:
    """Say how `register` went; None for well."""
    _outcomes[:] = [error]


def require_registered() -> None:
    """Raise ImportError where PAD's plugin failed in this process, or where vLLM does not load it and nobody
    else did: vLLM would end at an unknown load format, with no word of why.
    """
    for error in _outcomes:
        if error is not None:
            raise ImportError(
                "PAD is off in this process, since it cannot work with this vLLM: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not _outcomes and (excluded := why_excluded()) is not None:
        raise ImportError(excluded)


def why_excluded() -> str | None:
    """Why vLLM does not load the plugin, and the way out; None where it does (vllm/plugins/__init__.py)."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is None or PLUGIN_NAME in allowed.split(","):
        return None
    return (
        f"VLLM_PLUGINS={allowed} keeps vLLM from loading PAD. Unset it, or add {PLUGIN_NAME} to it."
    )
