"""The teacher, which is the base with an instruction in its prompt, and the store of its rewards.

In: DistillationExamples. Out: the teacher's rewards of the base's candidates at every token of the answers.
The teacher reads the instruction and the same answer. Logits are linear in the final hidden state, so its
logits differ from the base's by R*(a) = <e_a, d*>, d* = h_instructed - h_B; with an opposite d* =
(h_instructed - h_opposite) / 2. The K rewards of a token are stored, d* is not.
Shapes: n tokens of an answer, K candidates, D dimensions, H hidden size.
"""

from __future__ import annotations

import time
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
from pad_vllm.training.work_estimate import WorkEstimate

_CHUNK = 16
"""Examples computed at a time: enough to batch similar lengths, few to lose when the run is killed."""

_SECONDS_BETWEEN_SAVES = 120.0
"""Of the statistics: what a killed run computes again, at most."""

_BATCH = 16
"""Sequences of one forward."""

_TENSOR = "wanted"
"""Name of the rewards in the store's files, and of their folder."""


@torch.no_grad()
def final_hidden_states(
    model: PersRM, pairs: Sequence[tuple[list[int], list[int]]]
) -> list[Tensor]:
    """The base's final hidden states that predict the tokens of an answer.

    pairs: token ids of a prompt and of its answer of n tokens. Returns [n, H] float32 for each pair.
    """
    order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))
    states: dict[int, Tensor] = {}
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        ids = [torch.tensor([*pairs[i][0], *pairs[i][1]][:-1]) for i in batch]
        padded = pad_sequence(ids, batch_first=True).to(model.head_A.device)
        hidden = model.base_states(model.states_below_fork(padded))
        for row, i in enumerate(batch):
            stop = len(ids[row])
            states[i] = hidden[row, stop - len(pairs[i][1]) : stop].float().clone()
    return [states[i] for i in range(len(pairs))]


def teacher_directions(
    model: PersRM, examples: Sequence[DistillationExample], h_B: Sequence[Tensor]
) -> list[Tensor]:
    """d* of every answer of the examples.

    Args:
        model: Its base is the teacher.
        examples: Prompts with answers.
        h_B: [n, H] of each answer, the examples' answers one after the other.

    Returns:
        [D, n, H] float32 for each answer, in the order of `h_B`.
    """
    answers = [(example, ids) for example in examples for ids in example.response_ids]
    pairs = [
        (prompt_ids, ids)
        for example, ids in answers
        for prompts_of_dimension in example.instructed_ids
        for prompt_ids in prompts_of_dimension
    ]
    states = iter(final_hidden_states(model, pairs))
    return [
        torch.stack(
            [
                _direction([next(states) for _ in prompts_of_dimension], h.float())
                for prompts_of_dimension in example.instructed_ids
            ]
        )
        for (example, _), h in zip(answers, h_B, strict=True)
    ]


def _direction(h_instructed: list[Tensor], h_B: Tensor) -> Tensor:
    """d* [n, H] of a dimension: of its instruction, or half the difference to its opposite."""
    if len(h_instructed) == 1:
        return h_instructed[0] - h_B
    return (h_instructed[0] - h_instructed[1]) / 2


def teacher_candidate_rewards(model: PersRM, response: CachedResponse, d: Tensor) -> Tensor:
    """R* of an answer's candidates, less their mean under the base.

    Args:
        model: Has the embeddings.
        response: The answer, n tokens with K candidates.
        d: [D, n, H] d* of the answer.

    Returns:
        [n, K, D].
    """
    rewards = torch.einsum("nkh,dnh->nkd", model.embeddings(response.ids.long()), d)
    return subtract_base_mean(rewards, response.z_B)


class DistillationStore(TrainingStore):
    """A TrainingStore whose responses can come with the teacher's rewards.

    Args:
        model: Its base is the teacher.
        tokenizer: The base's.
        settings: The run's; no alternative next tokens are scored.
        folder: Where files are kept.
        backbone_identity: Fingerprint of the backbone's weights.
    """

    def __init__(
        self,
        model: PersRM,
        tokenizer: Any,
        settings: Settings,
        folder: Path,
        backbone_identity: str,
    ) -> None:
        plain = settings.without_branches()
        super().__init__(model, tokenizer, plain, folder, backbone_identity)
        self.rewards_cache = GroupTensorFiles(
            folder / _TENSOR, {"fork": self.fork_identity}, group_identity=_instructed_ids
        )

    def has_rewards(self, examples: Sequence[DistillationExample]) -> bool:
        """Whether the teacher's rewards of all examples are on disk (or the run keeps none there)."""
        return not self.settings.cached or not self.rewards_cache.missing(examples)

    def teacher_work(self, examples: Sequence[DistillationExample]) -> WorkEstimate:
        """What `collect_rewards` will take for those of the examples that have no rewards yet."""
        cached = self.settings.cached
        missing = [e for e in examples if not cached or not self.rewards_cache.path(e).exists()]
        tokens = rewards = 0
        for example in missing:
            prompts = [ids for prompts in example.instructed_ids for ids in prompts]
            for answer in example.response_ids:
                tokens += sum(len(prompt) + len(answer) - 1 for prompt in prompts)
                rewards += len(answer) * len(example.instructed_ids)
        width = 2 if cached else 0  # they are stored in half precision
        return WorkEstimate(tokens, width * rewards * self.settings.recipe.candidates)

    def collect_rewards(
        self,
        examples: Sequence[DistillationExample],
        progress: ProgressCallback,
        statistics: RidgeStatistics,
        path: Path | None,
    ) -> None:
        """Compute and store the teacher's rewards, and add the examples' tokens to the statistics.

        Args:
            examples: In the order in which they are added; the first `statistics.examples` are skipped.
            progress: Called before every few examples.
            statistics: Changed in place.
            path: Where the statistics are saved every few minutes, so that a killed run goes on there; of a
                large base they take hundreds of MB. None if only the rewards are needed: examples whose
                rewards are stored are then skipped too.
        """
        saved = time.monotonic()
        for start in range(int(statistics.examples), len(examples), _CHUNK):
            progress("the teacher's rewards", start, len(examples))
            chunk = examples[start : start + _CHUNK]
            if path is None and self.settings.cached:
                chunk = [e for e in chunk if not self.rewards_cache.path(e).exists()]
            responses = [self._without_rewards(example) for example in chunk]
            for h, d, variance in self._ask_teacher(chunk, responses):
                statistics.add(h, d, variance)
            statistics.examples += len(chunk)
            if path is not None and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                statistics.save(path)
                saved = time.monotonic()

    def responses(self, group: PromptGroup, *, with_targets: bool = False) -> list[CachedResponse]:
        """The answers of one example, on the model's device; with the teacher's rewards if `with_targets`."""
        responses = self._without_rewards(group)
        if not with_targets:
            return responses
        assert isinstance(group, DistillationExample)
        if self.settings.cached:
            stored = self.rewards_cache.read(group)
            rewards = [tensors[_TENSOR].to(self.device) for tensors in stored]
        else:
            directions = teacher_directions(self.model, [group], [r.h_B for r in responses])
            rewards = [
                teacher_candidate_rewards(self.model, response, d)
                for response, d in zip(responses, directions, strict=True)
            ]
        return [
            replace(response, teacher_rewards=one.float())
            for response, one in zip(responses, rewards, strict=True)
        ]

    def _without_rewards(self, group: PromptGroup) -> list[CachedResponse]:
        return super().responses(group)

    def _ask_teacher(
        self,
        examples: Sequence[DistillationExample],
        responses: Sequence[Sequence[CachedResponse]],
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each answer h_B [n, H], d* [D, n, H] and the rewards' variance [n, D]; stores the rewards."""
        h_B = [response.h_B for row in responses for response in row]
        directions = iter(teacher_directions(self.model, examples, h_B))
        for example, row in zip(examples, responses, strict=True):
            rewards = []
            for response in row:
                d = next(directions)
                rewards.append(teacher_candidate_rewards(self.model, response, d))
                variance = base_mean_square(rewards[-1], response.z_B)
                yield response.h_B.float(), d, variance
            if self.settings.cached:
                self.rewards_cache.write(
                    example, [{_TENSOR: tensor.half().cpu()} for tensor in rewards]
                )


def _instructed_ids(group: PromptGroup) -> list[Any]:
    assert isinstance(group, DistillationExample)
    return list(group.instructed_ids)
