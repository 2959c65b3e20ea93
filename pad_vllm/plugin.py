"""What vLLM calls: `register()`, the entry point in group vllm.general_plugins, in every process."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def register() -> None:
    """Connect PAD to vLLM, or log why that fails: vLLM does not catch what a plugin raises, and engines
    without PAD would end too. Those with it then end at the unknown load format "pad".
    """
    try:
        from pad_vllm.serving.registration import register_with_vllm

        register_with_vllm()
    except Exception:
        logger.exception("PAD is off: it cannot work with this vLLM; `pad-vllm check` says more")
