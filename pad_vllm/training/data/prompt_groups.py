"""A prompt with its scored responses as the trainer takes them: token ids and a tensor of scores.

In: groups (group_builder.py makes them of records). Out: the same in three parts by prompt, and on one scale.
All responses of a prompt stay in one group, so that one forward pass of a response serves every pair it is
in. Prefixes of responses have scores too (PREFIX_LENGTHS): the log-probability of a prefix is a partial sum
of the whole's, so pairs of prefixes cost nothing and say where in the text a preference was met. Knows
nothing of models or losses, nor where records come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from pad_vllm.text.conversation import Conversation
from pad_vllm.training.data.preference_record import unit_hash

PREFIX_LENGTHS = (24, 48, 72, 96)
"""C lengths, in tokens, of the prefixes that have scores of their own."""

PART_NAMES = ("train", "validation", "held out")
"""Names of the parts, in the order in which `split_by_key` returns them."""


@dataclass(frozen=True)
class PromptGroup:
    """One prompt with R responses, of which some dimension scores two differently."""

    prompt_key: str
    """`conversation.prompt_key` of the prompt: decides which part the group is in."""

    source: str
    """Label of the data source."""

    prompt_ids: list[int]
    """Token ids of the prompt, chat template included."""

    response_ids: list[list[int]]
    """R lists of token ids."""

    scores: Tensor
    """[R, C + 1, D] float32: of the C prefixes, then of the whole response. In the scorers' units, or in
    spreads after `divide_by_spread`. NaN: unknown."""

    prefix_scorers: tuple[str | None, ...]
    """D names: the scorer that can score unfinished text too, or None."""

    conversation: Conversation
    """The prompt, without chat template."""

    repeats_per_epoch: int = 1
    """How often an epoch sees the group."""

    stated_weights: tuple[float, ...] | None = None
    """D preference weights that the prompt states in words, which then are the ones trained; None: it
    states none."""

    prefix_spread: Tensor | float = 1.0
    """[D] spread that scores of the shortest prefixes were divided by."""


AnyGroup = TypeVar("AnyGroup", bound=PromptGroup)


def split_by_key(
    groups: Iterable[AnyGroup], validation: float, held_out: float
) -> tuple[list[AnyGroup], list[AnyGroup], list[AnyGroup]]:
    """Split groups by prompt. The key alone decides, so every run splits alike.

    Args:
        groups: in any order.
        validation: share of the prompts, 0 to 1.
        held_out: share of the prompts, 0 to 1.

    Returns:
        (training, validation, held-out) groups.

    Raises:
        ValueError: shares below 0, or of 1 and more together.
    """
    if validation < 0 or held_out < 0 or validation + held_out >= 1:
        raise ValueError(
            f"validation {validation:g} and held-out {held_out:g}: shares of the prompts of at "
            "least 0, together below 1, are accepted; lower one of them"
        )
    parts: tuple[list[AnyGroup], list[AnyGroup], list[AnyGroup]] = ([], [], [])
    for group in groups:
        position = unit_hash(group.prompt_key)
        part = 2 if position < held_out else 1 if position < held_out + validation else 0
        parts[part].append(group)
    return parts


def score_spreads(groups: Iterable[PromptGroup]) -> dict[str, Tensor]:
    """Source -> [C + 1, D] root-mean-square distance of a score from its prompt's mean.

    1 where no prompt has two known scores, and where all of a prompt's are the same: a divisor near 0
    would magnify noise in the scores of validation prompts.
    """
    squares: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    for group in groups:
        known = ~group.scores.isnan()
        distance = (group.scores - group.scores.nanmean(0)).nan_to_num()
        counted = known & (known.sum(0) > 1)  # a single score is its own mean
        squares[group.source] = squares.get(group.source, 0) + (distance**2 * counted).sum(0)
        counts[group.source] = counts.get(group.source, 0) + counted.sum(0)
    deviations = {s: (squares[s] / counts[s].clamp_min(1)).sqrt() for s in squares}
    return {s: torch.where(spread > 1e-6, spread, 1.0) for s, spread in deviations.items()}


def divide_by_spread(
    groups: Iterable[PromptGroup], spreads: Mapping[str, Tensor]
) -> list[PromptGroup]:
    """The groups with scores divided by their source's spread, so that sources are on one scale.

    Raises ValueError for a group whose source is not in `spreads` (`score_spreads` of the training part).
    """
    groups_in_spreads = []
    for group in groups:
        if group.source not in spreads:
            raise ValueError(
                f"source {group.source!r} has no spread; {', '.join(spreads) or 'none'} have. None of "
                "its prompts is in the training part: give it more records, or leave it out"
            )
        spread = spreads[group.source]
        groups_in_spreads.append(
            replace(group, scores=group.scores / spread, prefix_spread=spread[0])
        )
    return groups_in_spreads
