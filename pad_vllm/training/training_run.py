"""A training run from settings to adapter; what is learned, and how, is the method's (training_methods.py).

In: Settings. Out: the adapter's folder with its model card, curves.png and history.json. All state of an
unfinished run is in `OUT.run`; the same command resumes it. Runs alone or as one of several workers
(Accelerate finds out which); worker 0 writes.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import require_replaceable, save_adapter
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.opened_base import base_folder, devices_for
from pad_vllm.persrm import PersRM
from pad_vllm.text.chat_template import load_chat_tokenizer
from pad_vllm.training.data.prepare_data import checkpoint_context_tokens
from pad_vllm.training.loop.trainer import HistoryRow
from pad_vllm.training.loop.training_log import TrainingLog
from pad_vllm.training.objective.training_model import (
    adapter_config,
    enable_checkpointing,
    load_backbone,
    skeleton,
    to_adapter,
    untrained_persrm,
)
from pad_vllm.training.provenance import git_revision, package_versions, peak_memory_gib
from pad_vllm.training.report.model_card import model_card_text
from pad_vllm.training.report.training_curves import plot_training_curves
from pad_vllm.training.run_context import RunContext
from pad_vllm.training.run_folder import claim_run_folder, run_folder
from pad_vllm.training.run_inputs import (
    hub_revision,
    start_anew_where_changed,
    tokenizer_digest,
)
from pad_vllm.training.settings import Settings
from pad_vllm.training.training_method import TrainingMethod
from pad_vllm.training.training_methods import METHODS
from pad_vllm.training.training_stages import remove_trunk_activations

_NOT_IN_TRAINING_SETTINGS = ("out", "recipe", "chat_template")
"""Settings that stand elsewhere in pad_config.json, or nowhere in it."""


class TrainingRun:
    """One worker's part of a run: its context, the model, and the method that trains it.

    The constructor reads the data, checks all that can be checked without the base's weights, and claims the
    run's folder; `train` does the rest, and sets `model`.

    Args:
        settings: All choices of the run.
        cache: Folder of fork activations, shared between runs.
        command: The command as typed, for the model card.

    Raises:
        ValueError: Settings or data that cannot be trained with, an adapter's folder that may not be
            replaced, or a run's folder that holds a run with other settings.
    """

    model: PersRM

    def __init__(self, settings: Settings, cache: Path, command: str) -> None:
        from accelerate import Accelerator

        self.settings, self.command = settings, command
        method_class = METHODS[settings.method]
        accelerator = Accelerator(cpu=not torch.cuda.is_available())
        folder = run_folder(settings)
        self.log = TrainingLog(
            folder if accelerator.process_index == 0 else None,
            accuracy_label=method_class.accuracy_label,
        )
        self._checkpoint = checkpoint = base_folder(settings.base)
        backbone = Backbone.from_checkpoint(checkpoint, settings.name)
        self.context = RunContext(
            settings=settings,
            tokenizer=load_chat_tokenizer(checkpoint, settings.base, settings.chat_template),
            backbone=backbone,
            context_tokens=checkpoint_context_tokens(checkpoint),
            backbone_identity=backbone.fingerprint or str(checkpoint),
            cache=cache,
            accelerator=accelerator,
            folder=folder,
            log=self.log,
        )
        self.method: TrainingMethod = method_class(self.context)
        self._inputs = self._read_inputs()
        # Whatever would be refused after the training is refused now, before a run is begun.
        without_weights = self._untrained_model(skeleton(checkpoint))
        self.method.attach_model(without_weights)
        self._config(without_weights, results={})
        require_replaceable(Path(settings.out).expanduser())
        if self.context.rank == 0:
            claim_run_folder(folder, settings)
            for line in start_anew_where_changed(folder, self._inputs):
                self.log.write_line(line)
        self.context.wait_for_all_workers()

    def train(self) -> Adapter | None:
        """Train, evaluate and save. Returns the adapter on worker 0, None on the others."""
        self.gather()
        history = self.method.learn()
        if self.context.rank:
            return None
        with self.context.timed("evaluation"), torch.no_grad():
            results = self.method.evaluate()
        adapter = to_adapter(self.model, self._config(self.model, results))
        self.method.save_control(adapter.config)
        adapter = self.method.complete(adapter)
        self._save(adapter, history)
        return adapter

    def gather(self) -> None:
        """Compute all that training reads of the frozen base; sets `model`, untrained.

        The base is loaded when an engine that draws answers has ended: each takes most of a GPU's memory.
        """
        self.method.draw()
        settings, device = self.settings, self.context.accelerator.device
        # Several workers have an accelerator each; a single one may have several.
        device_map = devices_for(self._checkpoint, settings.dtype) if self._is_alone() else None
        backbone = load_backbone(self._checkpoint, settings.dtype, device, device_map)
        self.model = self._untrained_model(backbone)
        if settings.recipe.checkpointing:
            enable_checkpointing(backbone)
        self.method.attach_model(self.model)
        self.method.gather()

    def _is_alone(self) -> bool:
        return self.context.world_size == 1 and self.context.accelerator.device.type != "cpu"

    def _untrained_model(self, backbone: Any) -> PersRM:
        torch.manual_seed(self.settings.recipe.seed)
        return untrained_persrm(backbone, self.method.dimensions, self.settings)

    def _read_inputs(self) -> dict[str, Any]:
        """What an unfinished run must be made from to go on, and where it came from."""
        context, made_from = self.context, self.method.made_from()
        revisions = {"base": hub_revision(self._checkpoint), **made_from.pop("revisions", {})}
        return {
            "base": context.backbone_identity,
            "tokenizer": tokenizer_digest(context.tokenizer),
            **made_from,
            "revisions": {name: revision for name, revision in revisions.items() if revision},
        }

    def _config(self, model: PersRM, results: dict[str, Any]) -> AdapterConfig:
        """pad_config.json of the adapter. results: what the method's `evaluate` returned."""
        context, settings = self.context, self.context.settings
        written = settings.as_dict()
        training = {
            "command": self.command,
            "revision": git_revision(),
            "versions": package_versions(),
            "settings": {k: v for k, v in written.items() if k not in _NOT_IN_TRAINING_SETTINGS},
            "recipe": asdict(settings.recipe),
            "seed": settings.recipe.seed,
            "data": self.method.describe_data(),
            "made_from": self._inputs,
            **results,
            "seconds": {name: round(value) for name, value in context.seconds.items()},
            "peak_memory_gib": round(peak_memory_gib(), 2),
        }
        return adapter_config(
            model,
            context.backbone,
            training,
            beta=settings.beta,
            top_k=settings.top_k,
            no_repeat=settings.no_repeat,
            min_p=settings.min_p,
            loop_price=settings.loop_price,
            chat_template=settings.chat_template,
        )

    def _save(self, adapter: Adapter, history: list[HistoryRow]) -> None:
        """Write the adapter's folder, and remove what only training needed."""
        out = Path(self.settings.out)
        save_adapter(adapter, out, model_card_text(adapter.config, None))
        if history:
            (out / "history.json").write_text(json.dumps(history))
            plot_training_curves(history, out / "curves.png", self.method.curve_labels)
        remove_trunk_activations(self.context)
        self.log.write_line(f"peak memory {adapter.config.training['peak_memory_gib']} GiB")
        self.log.write_line(f"wrote {out}")
        self.log.close()
