"""What vLLM calls: `register()`, the entry point in group vllm.general_plugins, in every process."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def register() -> None:
    """`connect`, or a logged error where that fails: vLLM does not catch what a plugin raises, and
    engines that never asked for PAD would end too. Those that do then stop at load format "pad".
    """
    try:
        connect()
    except Exception:
        logger.exception("PAD is off: it cannot work with this vLLM; `pad-vllm check` says more")


def connect() -> None:
    """Probe this vLLM, register load format "pad", hook the front end's request check.

    Safe to call again. Raises what is wrong with this vLLM.
    """
    from pad_vllm import compat, startup
    from pad_vllm.engines.loader import PADModelLoader

    compat.probe()
    compat.register_model_loader(startup.LOAD_FORMAT)(PADModelLoader)
    compat.on_admission(startup.front_end)
