"""The plugin's entry point in group vllm.general_plugins: vLLM calls `register()` in every process."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def register() -> None:
    """Register PAD with vLLM, or log why that fails.

    It raises nothing: vLLM does not catch what a plugin raises, and engines without PAD would end too. Those
    with PAD then end at the unknown load format "pad".
    """
    try:
        from pad_vllm.serving.registration import register_with_vllm

        register_with_vllm()
    except Exception:
        logger.exception("PAD is off: it cannot work with this vLLM; `pad-vllm check` says more")
