"""Whether a config switches PAD on, and whether it does so completely.

In: a VllmConfig. Out: a bool, or a ValueError that names the flags which are missing. It imports only
PAD's constants and vLLM's names, because every process of vLLM imports it, also those that serve without PAD.
"""

from __future__ import annotations

from pad_vllm.config import LOAD_FORMAT, PAD_KEY
from pad_vllm.vllm_api.vllm_names import VllmConfig

_HOW_TO_START = (
    "start with --load-format pad --logits-processors pad_vllm:PADLogitsProcessor "
    """--additional-config '{"pad": {"adapter": "PATH"}}', or with `pad-vllm serve`"""
)


def asks_for_pad(config: VllmConfig) -> bool:
    """Whether the config has PAD's load format, PAD's settings or PAD's logits processor."""
    additional = config.additional_config
    return (
        config.load_config.load_format == LOAD_FORMAT
        or (isinstance(additional, dict) and PAD_KEY in additional)
        or _count_pad_processors(config) > 0
    )


def require_pad_switched_on(config: VllmConfig) -> None:
    """Raises ValueError unless the config has load format `pad` and PAD's logits processor exactly once."""
    if config.load_config.load_format != LOAD_FORMAT:
        raise ValueError(
            f"pad_vllm needs load format 'pad', and this is "
            f"{config.load_config.load_format!r}; {_HOW_TO_START}."
        )
    count = _count_pad_processors(config)
    if count != 1:
        raise ValueError(
            f"PADLogitsProcessor is given {count} times, and once is needed: without it requests "
            f"would not be guided, twice they would be guided twice; {_HOW_TO_START}."
        )


def _count_pad_processors(config: VllmConfig) -> int:
    """How many logits processors are PADLogitsProcessor or a subclass, given by name or as a class."""
    processors = config.model_config.logits_processors or []
    return sum(
        processor.rsplit(":", 1)[-1].endswith("PADLogitsProcessor")
        if isinstance(processor, str)
        else any(base.__name__ == "PADLogitsProcessor" for base in processor.__mro__)
        for processor in processors
    )
