"""Choices of simulated users between two answers to each prompt, plain ones or guided ones.

In: drawn answers, users and how much they like an answer. Out: [N, D] differences, chosen less other, from
which `fit_weights` finds weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.users.user_tastes import SimulatedUser, TasteScores, embed_answers
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.feature_sums import feature_sums
from pad_vllm.steering.guided_answers import AnswerBatch, Conversations, DrawnAnswer, draw_answers
from pad_vllm.text.chat_template import chat_token_ids


@dataclass(frozen=True)
class PlainChoices:
    """Two plain answers to each of N prompts, between which users choose."""

    differences: Tensor
    """[N, D] float32 Psi of the first answer less that of the second."""

    embedded: tuple[np.ndarray, np.ndarray]
    """[N, E] each: the first answers, and the second ones."""

    @classmethod
    def from_answers(
        cls,
        reader: CandidateReader,
        prompts: Conversations,
        answers: tuple[Sequence[DrawnAnswer], Sequence[DrawnAnswer]],
    ) -> PlainChoices:
        """Reads the answers.

        Args:
            reader: Of the base, with the adapter's reward model.
            prompts: N.
            answers: The first answer to each prompt, and the second one.
        """
        first, second = (_reward_sums(reader, prompts, to_each) for to_each in answers)
        return cls(first - second, (embed_answers(answers[0]), embed_answers(answers[1])))

    def chosen_less_other(self, user: SimulatedUser, scores: TasteScores) -> Tensor:
        """[N, D] differences of Psi, turned so that the user prefers the first answer."""
        better = np.sign(np.subtract(*(scores(user, part) for part in self.embedded)))
        return self.differences * torch.tensor(better).unsqueeze(-1)


def _reward_sums(
    reader: CandidateReader, prompts: Conversations, answers: Sequence[DrawnAnswer]
) -> Tensor:
    """[N, D] Psi of the answers."""
    pairs = [
        (chat_token_ids(reader.tokenizer, prompt.messages()), list(answer.token_ids))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return feature_sums(reader.model, pairs)


@dataclass(frozen=True)
class GuidedChoices:
    """Answers to N prompts under C conditions, of which each user is shown two a prompt."""

    weights: Tensor
    """[C, D] of the conditions: each dimension alone, in either sign."""

    embedded: Sequence[np.ndarray]
    """C times [N, E]."""

    seed: int
    """Of which two are shown."""

    @classmethod
    def draw(cls, batch: AnswerBatch, dimensions: Sequence[str]) -> GuidedChoices:
        """Draws the answers; batch: one decoding."""
        rows = [[c.weights.get(name, 0.0) for name in dimensions] for c in batch.conditions]
        (answers,) = draw_answers(batch)
        embedded = [embed_answers(row) for row in answers]
        return cls(torch.tensor(rows), embedded, batch.decodings[0].seed)

    def chosen_less_other(
        self, user: SimulatedUser, scores: TasteScores, indices: Sequence[int]
    ) -> Tensor:
        """Choices of a user between two answers to each prompt.

        Args:
            user: Who chooses.
            scores: How much users like an answer.
            indices: Of the dimensions that may guide the answers.

        Returns:
            [N, D] weights of the chosen answer less those of the other.
        """
        usable = self.weights[:, indices].any(-1).nonzero().flatten().tolist()
        liking = np.array([scores(user, self.embedded[c]) for c in usable])  # [usable, N]
        source = np.random.default_rng(self.seed)
        prompt = np.arange(liking.shape[1])
        pairs = [source.choice(len(usable), 2, replace=False) for _ in prompt]
        first, second = np.array(pairs).T
        first_is_better = torch.from_numpy(liking[first, prompt] >= liking[second, prompt])
        difference = self.weights[usable][first] - self.weights[usable][second]
        return torch.where(first_is_better.unsqueeze(-1), difference, -difference)
