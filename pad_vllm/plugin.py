"""What vLLM calls: `register()`, the entry point in group vllm.general_plugins, in every process."""

from __future__ import annotations


def register() -> None:
    """Probe this vLLM, register load format "pad", hook the front end's request check.

    Safe to call again. vLLM only logs what is raised here; `pad-vllm check` shows it.
    """
    from pad_vllm import compat, startup
    from pad_vllm.engines.shared.loader import PADModelLoader

    compat.probe()
    compat.register_model_loader(startup.LOAD_FORMAT)(PADModelLoader)
    compat.on_admission(startup.front_end)
