"""The held-out accuracy of a trained adapter, measured again: on its own data or on other data.

In: an adapter's folder and its backbone. Out: the rows of held_out_accuracy.py. Split, limits and spreads
are those that the adapter was trained with (they are in its pad_config.json), so that no training prompt is
counted. A dimension that the adapter does not have is expressed in those it has, by the fit that learns a
user's weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.choices.fit_weights import fit_weights
from pad_vllm.opened_base import base_folder, default_device, devices_for
from pad_vllm.persrm import PersRM
from pad_vllm.text.chat_template import load_chat_tokenizer
from pad_vllm.training.data.prepare_data import PreparedData, prepare_groups
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.data.synthetic_preferences import angle_to_nearest
from pad_vllm.training.loop.training_log import TrainingLog
from pad_vllm.training.objective.loss_module import cached_feature_sums
from pad_vllm.training.objective.pair_accuracy import TestedPreference, measure_pair_accuracy
from pad_vllm.training.objective.training_model import load_backbone
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.report.held_out_accuracy import (
    AccuracyRow,
    accuracy_entry,
    accuracy_rows,
    accuracy_rows_with_prompted_base,
)
from pad_vllm.training.settings import Settings


def evaluate_held_out(
    folder: Path,
    base: str,
    data_specs: Sequence[str] | None,
    cache: Path,
    unseen_dimensions: Sequence[str],
    fit_pairs: int,
    chat_template: str | None = None,
    *,
    prompted: bool = True,
) -> list[AccuracyRow]:
    """Rows for the adapter's dimensions and mixes, then one for each unseen dimension.

    Args:
        folder: The adapter's.
        base: The backbone it was trained on: a name, a checkpoint folder or a hub name.
        data_specs: Data sources, as for train; None are the adapter's own.
        cache: Folder of fork activations.
        unseen_dimensions: Dimensions of the data that the adapter does not have.
        fit_pairs: Pairs of training prompts from which an unseen dimension's weights are fitted.
        chat_template: Text of a template; None is the adapter's, then the base's own.
        prompted: Whether the base with the preference in its prompt is measured too; takes minutes.

    Raises:
        ValueError: Another backbone, an adapter that does not say how it was trained, one trained from
            instructions if there are no `data_specs`, or a dimension that the data does not score.
    """
    checkpoint, device = base_folder(base), default_device()
    adapter = load_adapter(folder)
    require_same_backbone(adapter.config.backbone, Backbone.from_checkpoint(checkpoint))
    settings = _evaluation_settings(adapter, base, data_specs, unseen_dimensions)
    template = chat_template or adapter.config.chat_template
    tokenizer = load_chat_tokenizer(checkpoint, base, template)
    prepared = prepare_groups(settings, tokenizer)
    device_map = devices_for(checkpoint, settings.dtype)
    backbone = load_backbone(checkpoint, settings.dtype, device, device_map)
    model = PersRM.from_adapter(backbone, adapter)
    identity = adapter.config.backbone.fingerprint or str(checkpoint)
    store = TrainingStore(model, tokenizer, settings, cache, identity)
    progress = TrainingLog(None).progress
    needed = [*prepared.held_out, *(prepared.train if unseen_dimensions else [])]
    store.build(needed, 0, 1, progress, with_targets=False)
    dimensions = len(model.dimensions)
    held_out = [_with_first_dimensions(group, dimensions) for group in prepared.held_out]
    if prompted:
        rows = accuracy_rows_with_prompted_base(
            store, tokenizer, held_out, settings.recipe, progress
        )
    else:
        rows = accuracy_rows(store, held_out, settings.recipe)
    for index, name in enumerate(unseen_dimensions, dimensions):
        rows.append(_unseen_dimension_row(store, prepared, index, name, fit_pairs))
    return rows


def _evaluation_settings(
    adapter: Adapter,
    base: str,
    data_specs: Sequence[str] | None,
    unseen_dimensions: Sequence[str],
) -> Settings:
    """The settings that the adapter was trained with, with the data and dimensions to evaluate."""
    training, names = adapter.config.training, adapter.config.dimensions
    if not {"settings", "recipe"} <= set(training):
        raise ValueError(
            f"this adapter for {adapter.config.backbone.name} does not say how it was trained "
            "(pad_config.json, training.settings); accepted: one that `pad-vllm train` wrote"
        )
    trained_on = sorted(set(unseen_dimensions) & set(names))
    if trained_on:
        raise ValueError(
            f"--unseen {trained_on[0]}: the adapter was trained on it. Name a dimension of the data that is "
            f"not among {', '.join(names)}"
        )
    original = Settings.from_dict({**training["settings"], "out": "", "recipe": training["recipe"]})
    if original.method == "prompt" and not data_specs:
        raise ValueError(
            f"{adapter.config.backbone.name}'s adapter was trained from instructions, so it has no held-out "
            "pairs of its own to rank; its card has the share of the teacher's rewards that it explains. "
            f"Give --data with scores of {', '.join(names)}"
        )
    return dataclasses.replace(
        original,
        base=base,
        data=tuple(data_specs or original.data),
        dimensions=(*names, *unseen_dimensions),
        text_preferences=0,
    )


def _with_first_dimensions(group: PromptGroup, count: int) -> PromptGroup:
    """The group with its first `count` dimensions."""
    return dataclasses.replace(
        group, scores=group.scores[..., :count], prefix_scorers=group.prefix_scorers[:count]
    )


def _unseen_dimension_row(
    store: TrainingStore, prepared: PreparedData, index: int, name: str, fit_pairs: int
) -> AccuracyRow:
    """The accuracy on held-out pairs of weights that were fitted to a dimension on training pairs.

    Args:
        store: Has the model and the responses of all groups.
        prepared: Groups whose scores include the dimension.
        index: Of the dimension in the groups' scores.
        name: Of the dimension.
        fit_pairs: Pairs to fit from, at most.
    """
    differences = _feature_differences(store, prepared.train, index, fit_pairs)
    if len(differences) < 2:
        raise ValueError(
            f"--unseen {name}: {len(differences)} of the training prompts have two responses with "
            "different scores; at least 2 are needed. Name a dimension that --data scores"
        )
    w = fit_weights(torch.stack(differences)).w.float()
    sums = [
        cached_feature_sums(store.model, store.responses(group)).cpu()
        for group in prepared.held_out
    ]
    scores = [group.scores[:, -1, index : index + 1] for group in prepared.held_out]
    axes = torch.eye(len(w))
    tested = TestedPreference(name, torch.ones(1, 1), angle_to_nearest(w, torch.cat([axes, -axes])))
    margin = store.settings.recipe.least_margin
    accuracy = measure_pair_accuracy(
        lambda number, _: (sums[number] @ w)[None], scores, [tested], margin
    )[name]
    return {
        "preference": f"{name} (fitted from {len(differences)})",
        "distance": round(tested.angle, 1),
        **accuracy_entry("trained", accuracy),
        "count": accuracy.count,
    }


def _feature_differences(
    store: TrainingStore, groups: Sequence[PromptGroup], index: int, limit: int
) -> list[Tensor]:
    """[D] Psi of the best response less that of the worst, of the first groups that tell them apart."""
    extremes = [(group, _best_and_worst(group.scores[:, -1, index])) for group in groups]
    pairs = [(group, pair) for group, pair in extremes if pair is not None][:limit]
    differences = []
    for group, (best, worst) in pairs:
        sums = cached_feature_sums(store.model, store.responses(group)).cpu()
        differences.append(sums[best] - sums[worst])
    return differences


def _best_and_worst(scores: Tensor) -> tuple[int, int] | None:
    """Indices of the highest and the lowest of scores [R]; None if some are unknown or all are equal."""
    if scores.isnan().any() or scores.max() == scores.min():
        return None
    return int(scores.argmax()), int(scores.argmin())
