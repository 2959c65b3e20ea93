"""Personalised alignment at decoding time (PAD, arXiv 2410.04070) for vLLM.

Importing this package imports neither torch nor vLLM; the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pad_vllm.version import __version__

if TYPE_CHECKING:
    from pad_vllm.adapter.adapter import Adapter
    from pad_vllm.persrm import PersRM
    from pad_vllm.serving.worker.logits_processor import PADLogitsProcessor

__all__ = ["Adapter", "PADLogitsProcessor", "PersRM", "__version__"]

_MODULE_OF = {
    "Adapter": "pad_vllm.adapter.adapter",
    "PADLogitsProcessor": "pad_vllm.serving.worker.logits_processor",
    "PersRM": "pad_vllm.persrm",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "PADLogitsProcessor":
        _require_vllm()
        from pad_vllm.vllm_api.plugin_state import require_registered

        require_registered()
    return getattr(import_module(_MODULE_OF[name]), name)


def _require_vllm() -> None:
    """Raises ImportError, which says how to get it, where vLLM is not installed."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        from pad_vllm.vllm_api.vllm_versions import INSTALL_VLLM

        raise ImportError(f"PADLogitsProcessor needs vLLM, which is not installed. {INSTALL_VLLM}")
