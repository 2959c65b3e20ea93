"""vLLM's names that the rest of the package uses, wherever this version keeps them.

Official: model loaders, logits processors (V1 and, from 0.32, V2), Attention, sampling parameters, config.
"""

from __future__ import annotations

from vllm.config import VllmConfig, get_current_vllm_config, set_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.model_loader import get_model_loader, register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.sample.logits_processor.interface import (
    BatchUpdate,
    MoveDirectionality,
)
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor

try:  # 0.32 and later; 0.25 keeps it elsewhere
    from vllm.model_executor.layers.attention import Attention
except ImportError:
    from vllm.attention.layer import Attention

try:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor
except ImportError:  # before 0.32 custom processors ran on the V1 runner only

    class V2LogitsProcessor:  # type: ignore[no-redef]
        """Stands in where this vLLM has no V2 interface."""


try:
    from vllm.exceptions import VLLMValidationError
except ImportError:
    VLLMValidationError = ValueError

__all__ = [
    "Attention",
    "BaseModelLoader",
    "BatchUpdate",
    "MoveDirectionality",
    "SamplingParams",
    "UnquantizedLinearMethod",
    "V1LogitsProcessor",
    "V2LogitsProcessor",
    "VLLMValidationError",
    "VllmConfig",
    "get_current_vllm_config",
    "get_model_loader",
    "init_logger",
    "register_model_loader",
    "set_current_vllm_config",
    "set_default_torch_dtype",
]
