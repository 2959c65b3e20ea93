"""`--load-format pad`: loads the model with another of vLLM's loaders, then forks it.

In: vLLM's config. Out: the forked model, its rewards entered in engines.base. Runs in the worker.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from pad_vllm import startup
from pad_vllm.adapter import load
from pad_vllm.compat import (
    BaseModelLoader,
    VllmConfig,
    get_model_loader,
    init_logger,
    recorded_attention,
    set_current_vllm_config,
    set_default_torch_dtype,
)
from pad_vllm.config import KEY
from pad_vllm.engines import base
from pad_vllm.engines.shared.fork import fork_model
from pad_vllm.version import __version__

logger = init_logger(__name__)


class PADModelLoader(BaseModelLoader):
    """Wraps the loader that `{"pad": {"load_format": ...}}` names ("auto" when it names none)."""

    def __init__(self, load_config: Any) -> None:
        super().__init__(load_config)
        self._inner = self._loader("auto")

    def _loader(self, load_format: str) -> BaseModelLoader:
        return get_model_loader(dataclasses.replace(self.load_config, load_format=load_format))

    def download_model(self, model_config: Any) -> None:
        self._inner.download_model(model_config)

    def load_weights(self, model: nn.Module, model_config: Any) -> None:
        """Weights into a model that may be forked already: parameter names are the plain model's."""
        self._inner.load_weights(model, model_config)

    def load_model(
        self, vllm_config: VllmConfig, model_config: Any, *args: Any, **kwargs: Any
    ) -> nn.Module:
        pad, _ = startup.settings(vllm_config)
        adapter = load(pad.adapter)
        # Written before the model is built: the compile cache's key knows neither the load format
        # nor the adapter, and two forks would share one artefact.
        key = f"{__version__}:{adapter.config.fork_layer}:{adapter.digest}"
        vllm_config.additional_config[KEY]["_compile_key"] = key
        self._inner = self._loader(pad.load_format)
        with recorded_attention() as record:
            model = self._inner.load_model(vllm_config, model_config, *args, **kwargs)
        # After the weights: only then is a hub name sure to be on this machine.
        startup.check_backbone(vllm_config, pad, adapter.config)
        device = next(model.parameters()).device
        with (
            set_current_vllm_config(vllm_config),
            set_default_torch_dtype(model_config.dtype),
            device,
        ):
            rewards = fork_model(model, adapter, record)
        base.start(vllm_config.instance_id, rewards)
        logger.info(
            "PAD: forked %d of %d layers, dimensions %s",
            adapter.config.backbone.num_layers - adapter.config.fork_layer,
            adapter.config.backbone.num_layers,
            ", ".join(adapter.config.dimensions),
        )
        return model
