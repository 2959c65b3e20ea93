"""The rewards of an adapter's dimensions as vectors over the base's candidates, with their scalar products.

In: plain answers as token ids, a CandidateReader. Out: weights, scaled to a spread of one logit, or those
under which the dimensions come nearest to the rewards that another prompt (with an instruction, or a
dialogue) gives to the same candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pad_vllm.choices.candidate_reader import (
    AnswerCandidates,
    CandidateReader,
    TokenAnswer,
    subtract_candidate_mean,
)
from pad_vllm.text.conversation import Conversation

RIDGE = 1e-3  # added to the diagonal, as a share of its mean

ChangePrompt = Callable[[list[dict[str, str]]], list[dict[str, str]]]
"""A prompt's messages -> the conversation whose rewards are measured."""


class ReadAnswer(NamedTuple):
    """A plain answer whose tokens are in the sums."""

    prompt: Conversation
    answer: TokenAnswer
    candidates: AnswerCandidates

    phi: Tensor
    """[n, K, D] float64, the dimensions' rewards of the candidates, zero mean under the base."""


@torch.no_grad()
def read_plain_answer(
    reader: CandidateReader, prompt: Conversation, answer: TokenAnswer
) -> ReadAnswer:
    """A plain answer with the dimensions' rewards of its candidates.

    Args:
        reader: Of the base, with the adapter's reward model.
        prompt: What was asked.
        answer: The base's own answer.
    """
    candidates = reader.candidates(prompt, answer)
    phi = reader.model.features(candidates.h, candidates.h_T, candidates.ids).double()
    return ReadAnswer(prompt, answer, candidates, subtract_candidate_mean(phi, candidates.p))


class RewardSpace:
    """Scalar products of rewards, summed over the tokens of the answers that were read."""

    def __init__(self, reader: CandidateReader) -> None:
        self.model, self.reader, self.tokens = reader.model, reader, 0
        D = len(self.model.dimensions)
        self.gram = torch.zeros(D, D, dtype=torch.float64)
        """[D, D] products of the dimensions' rewards, under the base."""

        self.prompt_products: dict[str, tuple[Tensor, float]] = {}
        """Name of a changed prompt -> products of its rewards with each dimension's [D], and their square."""

    def read(
        self,
        prompts: Sequence[Conversation],
        answers: Sequence[TokenAnswer],
        changes: Mapping[str, ChangePrompt],
    ) -> None:
        """Add some answers' tokens to the sums.

        Args:
            prompts: One an answer.
            answers: Plain answers of the base.
            changes: Name -> the changed prompt whose rewards are measured under that name.
        """
        for prompt, answer in zip(prompts, answers, strict=True):
            read = self.read_answer(prompt, answer)
            for name, change in changes.items():
                self.read_change(name, change, read)

    def read_answer(self, prompt: Conversation, answer: TokenAnswer) -> ReadAnswer:
        """Add one plain answer's tokens to the products of the dimensions."""
        read = read_plain_answer(self.reader, prompt, answer)
        self.add_answer(read)
        return read

    def add_answer(self, read: ReadAnswer) -> None:
        """Add the tokens of an answer that was read before to the products of the dimensions."""
        self.tokens += len(read.phi)
        self.gram += torch.einsum("nk,nki,nkj->ij", read.candidates.p, read.phi, read.phi)

    @torch.no_grad()
    def read_change(self, name: str, change: ChangePrompt, read: ReadAnswer) -> None:
        """Add what a changed prompt pays for one answer's candidates to the products under its name.

        Args:
            name: Of the changed prompt.
            change: Changes the answer's prompt.
            read: The answer.
        """
        conversation = change(read.prompt.messages())
        p = read.candidates.p
        rewards = self.reader.conversation_rewards(conversation, read.answer, read.candidates)
        products, square = self.prompt_products.get(name, (torch.zeros_like(self.gram[0]), 0.0))
        products = products + torch.einsum("nk,nki,nk->i", p, read.phi, rewards)
        self.prompt_products[name] = products, square + float((p * rewards**2).sum())

    def indices(self, names: Sequence[str]) -> list[int]:
        """Indices of dimensions among the model's."""
        return [self.model.dimensions.index(name) for name in names]

    def scale_to_one_logit(self, weights: dict[str, float]) -> dict[str, float]:
        """The same weights scaled so that their rewards have a standard deviation of one logit."""
        w = torch.tensor([weights.get(name, 0.0) for name in self.model.dimensions]).double()
        spread = float((w @ self.gram @ w / self.tokens).sqrt())
        return {name: value / spread for name, value in weights.items()}

    def project(self, name: str, dimensions: Sequence[str]) -> tuple[dict[str, float], float]:
        """Weights of the dimensions that come nearest to a changed prompt's rewards, by least squares, and
        the share of these rewards that they explain. name: as in `read`.
        """
        indices = self.indices(dimensions)
        products, square = self.prompt_products[name]
        gram = self.gram[indices][:, indices]
        gram = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(indices)).double()
        w = torch.linalg.solve(gram, products[indices])
        explained = float(w @ products[indices] / square)
        return dict(zip(dimensions, w.tolist(), strict=True)), explained

    def nearest(self, name: str, dimensions: Sequence[str]) -> tuple[str, float]:
        """The dimension whose rewards go best with a changed prompt's, in either sign, and their cosine."""
        products, square = self.prompt_products[name]
        cosines = products / (self.gram.diagonal() * square).sqrt()
        best = max(self.indices(dimensions), key=lambda index: abs(float(cosines[index])))
        return self.model.dimensions[best], float(cosines[best])
