"""What V2's drafters read of a forked model's hidden states: those of the base, as without a fork.

EAGLE and MTP draft from what the served model's forward returned. vLLM's runner passes it through
`get_drafter_hidden_states` (vllm/v1/worker/gpu/spec_decode/utils.py), which this module wraps. Hidden states
of inner layers, which EAGLE3 and DFlash read, are cut where the model returns them
(engines/shared/model_fork.py).
"""

from __future__ import annotations

import inspect
from typing import Any

import vllm

from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.vllm_versions import ACCEPTED_IN_WORDS, IncompatibleVLLM


def patch_drafter_hidden_states() -> None:
    """Wrap what V2's runner takes a drafter's hidden states from. Calling twice changes nothing. Raises
    IncompatibleVLLM.
    """
    from vllm.v1.worker.gpu import model_runner

    function: Any = getattr(model_runner, "get_drafter_hidden_states", None)
    known = function is not None and list(inspect.signature(function).parameters) == [
        "model",
        "hidden_states",
    ]
    if not known:
        raise IncompatibleVLLM(
            f"vLLM {vllm.__version__} gives drafters hidden states in a way that pad_vllm does not know; it "
            f"accepts vLLM {ACCEPTED_IN_WORDS}. Drop --speculative-config, or install one of these."
        )
    wrap_method(model_runner, "get_drafter_hidden_states", _of_base_stream)


def _of_base_stream(original: Any, model: Any, hidden_states: Any) -> Any:
    if hasattr(model, "pad_streams"):
        hidden_states, _ = model.pad_streams(hidden_states)
    return original(model, hidden_states)
