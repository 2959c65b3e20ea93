"""vLLM's names that the rest of the package uses.

Official: model loaders, logits processors (V1 and V2), Attention, sampling parameters, config.
"""

from __future__ import annotations

from vllm.config import VllmConfig, get_current_vllm_config, set_current_vllm_config
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.model_loader import get_model_loader, register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import set_default_torch_dtype
from vllm.v1.sample.logits_processor.interface import (
    BatchUpdate,
    MoveDirectionality,
)
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as V2LogitsProcessor

__all__ = [
    "Attention",
    "BaseModelLoader",
    "BatchUpdate",
    "GracefulHTTPError",
    "LoRARequest",
    "MoveDirectionality",
    "SamplingParams",
    "UnquantizedLinearMethod",
    "V1LogitsProcessor",
    "V2LogitsProcessor",
    "VLLMValidationError",
    "VllmConfig",
    "VocabParallelEmbedding",
    "get_current_vllm_config",
    "get_model_loader",
    "init_logger",
    "register_model_loader",
    "set_current_vllm_config",
    "set_default_torch_dtype",
]
