"""The told base as a teacher, and where its lessons are kept.

In: Lessons. Out: the rewards it pays to the base's candidates at every token of the answers. It has read the
wish and the same answer, and logits are linear in the final hidden state, so that it differs from the base
by R*(a) = <e_a, d*>, d* = h_told - h_B, or (h_told - h_opposite) / 2. Kept are K rewards a token, never d*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad_vllm.persrm import PersRM
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.distillation.distillation_examples import DistillationExample
from pad_vllm.training.distillation.ridge_statistics import RidgeStatistics
from pad_vllm.training.objective.candidate_rewards import base_mean_square, subtract_base_mean
from pad_vllm.training.objective.fork_cache import CachedResponse, GroupTensorFiles
from pad_vllm.training.objective.training_store import ProgressCallback, TrainingStore
from pad_vllm.training.settings import Settings

_CHUNK = 16
"""Lessons taught at a time: enough to batch similar lengths, few to lose when killed."""

_BATCH = 16
"""Sequences of one forward."""


@torch.no_grad()
def final_hidden_states(
    model: PersRM, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[Tensor]:
    """The base's final hidden states [n, H] that predict each answer's n tokens, by (prompt, answer)."""
    order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), _BATCH):
        some = order[start : start + _BATCH]
        ids = [torch.tensor([*pairs[i][0], *pairs[i][1]][:-1]) for i in some]
        hidden = model.base_states(
            model.states_below_fork(pad_sequence(ids, batch_first=True).to(model.head_A.device))
        )
        for row, i in enumerate(some):
            stop = len(ids[row])
            found[i] = hidden[row, stop - len(pairs[i][1]) : stop].float().clone()
    return [found[i] for i in range(len(pairs))]


def teacher_directions(
    model: PersRM, lessons: Sequence[DistillationExample], h_B: Sequence[Tensor]
) -> list[Tensor]:
    """d* [D, n, H] of every answer; h_B [n, H] in the answers' order."""
    answers = [(lesson, ids) for lesson in lessons for ids in lesson.response_ids]
    pairs = [
        (told, ids) for lesson, ids in answers for both in lesson.instructed_ids for told in both
    ]
    said = iter(final_hidden_states(model, pairs))
    return [
        torch.stack(
            [_direction([next(said) for _ in both], h.float()) for both in lesson.instructed_ids]
        )
        for (lesson, _), h in zip(answers, h_B, strict=True)
    ]


def _direction(told: list[Tensor], h_B: Tensor) -> Tensor:
    return told[0] - h_B if len(told) == 1 else (told[0] - told[1]) / 2


def teacher_candidate_rewards(model: PersRM, response: CachedResponse, d: Tensor) -> Tensor:
    """R* [n, K, D] of an answer's candidates, their mean under the base taken off; d [D, n, H]."""
    rewards = torch.einsum("nkh,dnh->nkd", model.embeddings(response.ids.long()), d)
    return subtract_base_mean(rewards, response.z_B)


class DistillationStore(TrainingStore):
    """A Store whose responses come with what the teacher pays."""

    def __init__(
        self, model: PersRM, tokenizer: Any, settings: Settings, folder: Path, identity: str
    ) -> None:
        super().__init__(model, tokenizer, settings.without_branches(), folder, identity)
        self.rewards_cache = GroupTensorFiles(
            folder / "wanted", {"fork": self.fork_identity}, group_identity=_told
        )

    def has_rewards(self, lessons: Sequence[DistillationExample]) -> bool:
        """Whether the teacher's rewards of all of them are on disk, or need not be."""
        return not self.settings.cached or not self.rewards_cache.missing(lessons)

    def collect_rewards(
        self,
        examples: Sequence[DistillationExample],
        progress: ProgressCallback,
        statistics: RidgeStatistics,
        path: Path | None,
    ) -> None:
        """Ask the teacher about lessons in their order, from where `moments` stand.

        path: where the moments go after every few lessons; None where only the rewards are wanted.
        """
        for start in range(int(statistics.lessons), len(examples), _CHUNK):
            progress("the teacher's rewards", start, len(examples))
            chunk = examples[start : start + _CHUNK]
            if path is None and self.settings.cached:
                chunk = [one for one in chunk if not self.rewards_cache.path(one).exists()]
            rows = [self._read(lesson) for lesson in chunk]
            for h, d, variance in self._taught(chunk, rows):
                statistics.add(h, d, variance)
            statistics.lessons += len(chunk)
            if path is not None:
                statistics.save(path)

    def _taught(
        self, lessons: Sequence[DistillationExample], rows: Sequence[Sequence[CachedResponse]]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """h_B, d* and the rewards' variance [n, D] of each answer; the rewards are kept."""
        flat = [response for row in rows for response in row]
        found = iter(teacher_directions(self.model, lessons, [r.h_B for r in flat]))
        for lesson, row in zip(lessons, rows, strict=True):
            paid = []
            for response in row:
                d = next(found)
                paid.append(teacher_candidate_rewards(self.model, response, d))
                variance = base_mean_square(paid[-1], response.z_B)
                yield response.h_B.float().cpu(), d.cpu(), variance.cpu()
            if self.settings.cached:
                self.rewards_cache.write(lesson, [{"wanted": one.half().cpu()} for one in paid])

    def _read(self, group: PromptGroup) -> list[CachedResponse]:
        return super().responses(group)

    def responses(self, group: PromptGroup, *, with_targets: bool = False) -> list[CachedResponse]:
        """Of one lesson, with the teacher's rewards where `scored`."""
        row = self._read(group)
        if not with_targets:
            return row
        assert isinstance(group, DistillationExample)
        if self.settings.cached:
            paid = [one["wanted"].to(self.device) for one in self.rewards_cache.read(group)]
        else:
            d = teacher_directions(self.model, [group], [r.h_B for r in row])
            paid = [
                teacher_candidate_rewards(self.model, *both) for both in zip(row, d, strict=True)
            ]
        return [replace(r, teacher_rewards=one.float()) for r, one in zip(row, paid, strict=True)]


def _told(group: PromptGroup) -> list[Any]:
    assert isinstance(group, DistillationExample)
    return list(group.instructed_ids)
