"""What PAD enters into vLLM, in every process of it: load format "pad" and the front end's request check."""

from __future__ import annotations

from pad_vllm.config import LOAD_FORMAT
from pad_vllm.serving.admission import front_end
from pad_vllm.serving.loader import PADModelLoader
from pad_vllm.vllm_api.front_end import on_admission
from pad_vllm.vllm_api.names import register_model_loader
from pad_vllm.vllm_api.probe import probe


def connect() -> None:
    """Probe this vLLM, register load format "pad", hook the front end's request check.

    Safe to call again. Raises what is wrong with this vLLM.
    """
    probe()
    register_model_loader(LOAD_FORMAT)(PADModelLoader)
    on_admission(front_end)
