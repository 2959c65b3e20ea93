"""Method `pairs`: learns which of a prompt's responses is preferred, step by step (`--teacher pairs`).

    pad-vllm train BASE --data helpsteer2 --out ADAPTER

In: scored data. The result: held-out pairs ranked as their scores rank them, by the trained model, by an
untrained one and by the base with the preference in its prompt.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.persrm import PersRM
from pad_vllm.training.loop.pair_dataset import PairDataset
from pad_vllm.training.loop.trainer import HistoryRow, StageData
from pad_vllm.training.objective.loss_module import PreferenceObjective
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.report.held_out_accuracy import (
    accuracy_rows,
    accuracy_rows_with_prompted_base,
)
from pad_vllm.training.report.training_curves import PAIR_ACCURACY, CurveLabels
from pad_vllm.training.run_context import RunContext
from pad_vllm.training.scored_data import fill_store_with, read_scored_data, sources_read
from pad_vllm.training.training_stages import train_two_stages


class PairsMethod:
    """A TrainingMethod: two stages of a loss over pairs of responses."""

    accuracy_label: ClassVar[str] = "validation pairs"
    curve_labels: ClassVar[CurveLabels] = PAIR_ACCURACY
    store: TrainingStore

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.prepared = read_scored_data(context)
        self.dimensions = self.prepared.dimensions

    def attach_model(self, model: PersRM) -> None:
        """Open the store of the model's activations, with scores of alternative next tokens."""
        context = self.context
        self.store = TrainingStore(
            model, context.tokenizer, context.settings, context.cache, context.backbone_identity
        )
        context.plan_cache(self.store, self.prepared.groups())

    def draw(self) -> None:
        """The responses are the data's."""

    def gather(self) -> None:
        """Compute the fork activations of all responses, and the scores of next tokens."""
        fill_store_with(self.prepared, self.store, self.context)

    def learn(self) -> list[HistoryRow]:
        """Train trunk and heads, then the heads; returns the history of both stages."""
        groups = self.prepared.groups()
        return train_two_stages(self.context, self.store, groups, self.stage_inputs)

    def stage_inputs(self) -> tuple[nn.Module, StageData]:
        """The loss over pairs and the prompts that it is trained and validated on."""
        recipe, prepared = self.context.settings.recipe, self.prepared
        data = PairDataset(self.store, prepared.train, prepared.validation, recipe)
        return PreferenceObjective(self.store.model, recipe), data

    def evaluate(self) -> dict[str, Any]:
        """`held_out`: for each preference how many held-out pairs each model ranks as their scores do."""
        groups, settings = self.prepared.held_out, self.context.settings
        if not settings.prompted:
            return {"held_out": accuracy_rows(self.store, groups, settings.recipe)}
        rows = accuracy_rows_with_prompted_base(
            self.store,
            self.context.tokenizer,
            groups,
            settings.recipe,
            self.context.log.progress,
        )
        return {"held_out": rows}

    def describe_data(self) -> dict[str, Any]:
        """Records, groups and prompts of each source."""
        return self.prepared.report.as_dict()

    def made_from(self) -> dict[str, Any]:
        """Digests of the files of each source."""
        return sources_read(self.prepared)

    def complete(self, adapter: Adapter) -> Adapter:
        """The adapter has all that was learned."""
        return adapter

    def save_control(self, config: AdapterConfig) -> None:
        """Save nothing: there is no best constant in closed form for pairs."""
