"""The plugin's entry point in group vllm.general_plugins: vLLM calls `register()` in every process."""

from __future__ import annotations

import logging

from pad_vllm.vllm_api import plugin_state

logger = logging.getLogger(__name__)


def register() -> None:
    """Register PAD with vLLM, or log why that fails.

    It raises nothing: vLLM does not catch what a plugin raises, and engines without PAD would end too. Those
    with PAD then end where they name its logits processor (vllm_api/plugin_state.py).
    """
    try:
        from pad_vllm.serving.registration import register_with_vllm

        register_with_vllm()
    except Exception as error:
        plugin_state.set_outcome(error)
        logger.exception("PAD is off: it cannot work with this vLLM; `pad-vllm check` says more")
    else:
        plugin_state.set_outcome(None)
