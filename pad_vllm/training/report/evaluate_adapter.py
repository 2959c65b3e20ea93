"""The held-out figures of a trained adapter, once more: on its own data or on other.

In: an adapter's folder and its backbone. Out: the rows of evaluate.py. Split, limits and spreads are those
the adapter says it was trained with, so a prompt it has seen is never counted. Dimensions that the
adapter does not have are expressed in those it has, by the fit that learns a user's weights.
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
from pad_vllm.persrm import PersRM
from pad_vllm.text.chat_template import load_chat_tokenizer
from pad_vllm.training.data.prepare_data import PreparedData, checkpoint_folder, prepare_groups
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.data.synthetic_preferences import angle_to_nearest
from pad_vllm.training.fit_weights import fit_weights
from pad_vllm.training.loop.training_log import TrainingLog
from pad_vllm.training.objective.loss_module import cached_feature_sums
from pad_vllm.training.objective.pair_accuracy import TestedPreference, measure_pair_accuracy
from pad_vllm.training.objective.training_model import load_backbone
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.report import held_out_accuracy
from pad_vllm.training.settings import Settings


def evaluate_held_out(
    folder: Path,
    base: str,
    data_specs: Sequence[str] | None,
    cache: Path,
    unseen_dimensions: Sequence[str],
    fit_pairs: int,
    chat_template: str | None = None,
) -> list[held_out_accuracy.AccuracyRow]:
    """Rows for the adapter's dimensions and mixes, then one for each unseen dimension.

    specs: data sources; None are the adapter's own. choices: pairs an unseen one is fitted from.
    template: the chat template; None is the adapter's, then the base's own.
    """
    where = checkpoint_folder(base)
    adapter = load_adapter(folder)
    require_same_backbone(adapter.config.backbone, Backbone.from_checkpoint(where))
    settings = _settings(adapter, base, data_specs, unseen_dimensions)
    tokenizer = load_chat_tokenizer(where, base, chat_template or adapter.config.chat_template)
    prepared = prepare_groups(settings, tokenizer)
    model = PersRM.from_adapter(load_backbone(where, settings.dtype), adapter)
    identity = adapter.config.backbone.fingerprint or str(where)
    store = TrainingStore(model, tokenizer, settings, cache, identity)
    log = TrainingLog(None)
    known = len(model.dimensions)
    wanted = [*prepared.held_out, *(prepared.train if unseen_dimensions else [])]
    store.build(wanted, 0, 1, log.progress, with_targets=False)
    held_out = [_first(group, known) for group in prepared.held_out]
    rows = held_out_accuracy.accuracy_rows_with_prompted_base(
        store, tokenizer, held_out, settings.recipe, log.progress
    )
    for place, name in enumerate(unseen_dimensions, known):
        rows.append(_unseen(store, prepared, place, name, fit_pairs))
    return rows


def _settings(
    adapter: Adapter, base: str, specs: Sequence[str] | None, unseen: Sequence[str]
) -> Settings:
    training, names = adapter.config.training, adapter.config.dimensions
    if not {"settings", "recipe"} <= set(training):
        raise ValueError(
            f"this adapter for {adapter.config.backbone.name} does not say how it was trained "
            "(pad_config.json, training.settings); accepted: one that `pad-vllm train` wrote"
        )
    own = sorted(set(unseen) & set(names))
    if own:
        raise ValueError(
            f"--unseen {own[0]}: the adapter was trained on it. Name a dimension of the data that is "
            f"not among {', '.join(names)}"
        )
    original = Settings.from_dict({**training["settings"], "out": "", "recipe": training["recipe"]})
    if original.teacher is not None and not specs:
        raise ValueError(
            f"{adapter.config.backbone.name}'s adapter was taught by sentences, so there are no pairs of "
            "its own to rank; its card has the shares of the teacher's rewards. Give --data with scores "
            f"of {', '.join(names)}"
        )
    return dataclasses.replace(
        original,
        base=base,
        data=tuple(specs or original.data),
        dimensions=(*names, *unseen),
        text_preferences=0,
    )


def _first(group: PromptGroup, count: int) -> PromptGroup:
    """The group with its first `count` dimensions."""
    return dataclasses.replace(
        group, scores=group.scores[..., :count], prefix_scorers=group.prefix_scorers[:count]
    )


def _unseen(
    store: TrainingStore, prepared: PreparedData, place: int, name: str, choices: int
) -> held_out_accuracy.AccuracyRow:
    """Fit dimension number `place` from training pairs; its accuracy on the held-out ones."""
    told = [(g, _extremes(g.scores[:, -1, place])) for g in prepared.train]
    picked = [(g, pair) for g, pair in told if pair is not None][:choices]
    differences = []
    for group, (best, worst) in picked:
        values = cached_feature_sums(store.model, store.responses(group)).cpu()
        differences.append(values[best] - values[worst])
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
    scores = [group.scores[:, -1, place : place + 1] for group in prepared.held_out]
    axes = torch.eye(len(w))
    tested = TestedPreference(name, torch.ones(1, 1), angle_to_nearest(w, torch.cat([axes, -axes])))
    least = store.settings.recipe.least_margin
    accuracy = measure_pair_accuracy(
        lambda number, _: (sums[number] @ w)[None], scores, [tested], least
    )[name]
    return {
        "preference": f"{name} (fitted from {len(differences)})",
        "distance": round(tested.angle, 1),
        **held_out_accuracy.accuracy_entry("trained", accuracy),
        "count": accuracy.count,
    }


def _extremes(scores: Tensor) -> tuple[int, int] | None:
    """The best and the worst of known scores [R]; None where they do not differ."""
    if scores.isnan().any() or scores.max() == scores.min():
        return None
    return int(scores.argmax()), int(scores.argmin())
