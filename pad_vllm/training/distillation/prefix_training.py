"""Learned prefixes: keys and values in front of the reward stream, trained on the teacher's rewards.

In: answers as token ids, with the teacher's rewards of their candidates; a prefix to start from, such as that
of the sentence itself. Out: a prefix of the same shape under which the forked layers of the frozen base give
rewards as near to the teacher's as they can:

    error(t) = sum over the base's candidates of p_B(a) (<e_a, h_T - h_B> - R*(a))^2     centred under p_B

Only keys and values are trained; steps are in units of their spread in each layer. Knows no PersRM.
Shapes: F layers from the fork layer up, P tokens of the prefix, n tokens of an answer, K candidates.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pad_vllm import guidance
from pad_vllm.instruction_prefix import InstructedBackbone, InstructionPrefix
from pad_vllm.training.distillation.reward_regression import squared_errors, token_weights
from pad_vllm.training.objective.candidate_rewards import base_mean_square
from pad_vllm.training.settings import PrefixSettings

_BATCH = 8
"""Texts of one step."""

_WARMUP_STEPS = 10


@dataclass(frozen=True)
class PrefixText:
    """An answer of n tokens behind its prompt, as the frozen base sees it."""

    token_ids: list[int]
    """Of prompt and answer, but for the last token, which is only predicted."""

    h_B: Tensor
    """[n, H] the base's final hidden states that predict the answer's tokens."""

    ids: Tensor
    """[n, K] token ids of the candidates."""

    z_B: Tensor
    """[n, K] the base's logits of the candidates."""


class _Batch(NamedTuple):
    texts: Sequence[PrefixText]
    places: Sequence[int]
    """Of each text among all texts."""

    forked: Tensor
    """[N, T, H] residual stream below the fork layer, on the CPU."""


class PrefixTexts:
    """Texts that prefixes are trained or measured on, with the residual stream below the fork layer.

    It is computed once, for all dimensions and epochs, and kept in memory in the base's dtype: H numbers a
    token.
    """

    def __init__(
        self,
        backbone: InstructedBackbone,
        embeddings: Callable[[Tensor], Tensor],
        texts: Sequence[PrefixText],
    ) -> None:
        """Run the layers below the fork.

        Args:
            backbone: the frozen base.
            embeddings: of its output: token ids [n, K] -> [n, K, H] float32.
            texts: in the order in which teachers' rewards are given.
        """
        self.backbone, self._embeddings = backbone, embeddings
        order = sorted(range(len(texts)), key=lambda i: len(texts[i].token_ids))
        self.batches = []
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = [texts[place] for place in places]
            ids = [torch.tensor(text.token_ids) for text in batch]
            padded = pad_sequence(ids, batch_first=True).to(backbone.device)
            forked = backbone.states_below_fork(padded).cpu()
            self.batches.append(_Batch(batch, places, forked))

    def rewards(self, batch: _Batch, prefix: InstructionPrefix) -> Iterator[Tensor]:
        """Of each text of a batch the candidates' rewards under a prefix: [n, K, 1]. Gradients flow."""
        forked = batch.forked.to(self.backbone.device)
        hidden = self.backbone.instructed_states(forked, prefix)
        for text, states in zip(batch.texts, hidden, strict=True):
            length, n, row = len(text.token_ids), len(text.h_B), states.to(text.h_B.device)
            difference = row[length - n : length].float() - text.h_B.float()
            embeddings = self._embeddings(text.ids.long())
            yield guidance.rewards(difference, embeddings).unsqueeze(-1)

    @torch.no_grad()
    def explained_share(
        self, prefix: InstructionPrefix, teacher_rewards: Sequence[Tensor], max_tokens: int = 10**9
    ) -> float:
        """The share of the teacher's rewards that a prefix explains, at scale 1.

        Args:
            prefix: any.
            teacher_rewards: [n, K] of each text, centred under the base.
            max_tokens: how many tokens of every answer count, from the first.
        """
        unexplained = total = 0.0
        for batch in self.batches:
            found = self.rewards(batch, prefix)
            for place, text, rewards in zip(batch.places, batch.texts, found, strict=True):
                wanted = teacher_rewards[place].unsqueeze(-1).to(rewards)
                errors = squared_errors(rewards, text.z_B, wanted)
                unexplained += float(errors[:max_tokens].sum())
                total += float(base_mean_square(wanted, text.z_B)[:max_tokens].sum())
        return 1 - unexplained / max(total, 1e-12)


class _TrainedPrefix(nn.Module):
    """Keys and values that start at a prefix; parameters are offsets in units of each layer's spread."""

    start: Tensor
    spread: Tensor

    def __init__(self, start: InstructionPrefix) -> None:
        super().__init__()
        both = torch.stack([torch.stack(start.keys), torch.stack(start.values)]).float()
        self.register_buffer("start", both)  # [2, F, KV heads, P, width]
        self.register_buffer("spread", both.std((2, 3, 4), keepdim=True).clamp_min(1e-6))
        self.offset = nn.Parameter(torch.zeros_like(both))

    def forward(self, dtype: torch.dtype) -> InstructionPrefix:
        keys, values = (self.start + self.spread * self.offset).to(dtype)
        return InstructionPrefix(tuple(keys), tuple(values))


def train_prefix(
    texts: PrefixTexts,
    teacher_rewards: Sequence[Tensor],
    start: InstructionPrefix,
    settings: PrefixSettings,
    *,
    seed: int,
    log: Callable[[int, float], None],
) -> InstructionPrefix:
    """Train a prefix on the teacher's rewards of one dimension.

    Args:
        texts: the training answers.
        teacher_rewards: [n, K] of each text, centred under the base.
        start: keys and values that training starts at, on the backbone's device.
        settings: epochs and learning rate.
        seed: of the order of batches.
        log: called after each epoch with its number, from 1, and the share that was not explained.

    Returns:
        The trained prefix, in the base's dtype.
    """
    dtype = texts.backbone.backbone.dtype
    module = _TrainedPrefix(start)
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.0
    )
    num_steps, step = settings.epochs * len(texts.batches), 0
    order, shuffle = list(range(len(texts.batches))), random.Random(seed)
    variance = _mean_variance(texts, teacher_rewards)
    for epoch in range(1, settings.epochs + 1):
        shuffle.shuffle(order)
        unexplained = tokens = 0.0
        for index in order:
            batch = texts.batches[index]
            rate = settings.lr * _learning_rate_factor(step, num_steps)
            optimiser.param_groups[0]["lr"] = rate
            errors, weights = [], []
            found = texts.rewards(batch, module(dtype))
            for place, text, rewards in zip(batch.places, batch.texts, found, strict=True):
                wanted = teacher_rewards[place].unsqueeze(-1).to(rewards)
                errors.append(squared_errors(rewards, text.z_B, wanted)[:, 0] / variance)
                weights.append(token_weights(len(text.h_B)).to(rewards.device))
            error, weight = torch.cat(errors), torch.cat(weights)
            loss = (weight * error).sum() / weight.sum()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            unexplained, tokens = unexplained + float(error.detach().sum()), tokens + len(error)
            step += 1
        log(epoch, unexplained / max(tokens, 1))
    with torch.no_grad():
        return module(dtype)


def _learning_rate_factor(step: int, num_steps: int) -> float:
    """A short warm-up, then a linear decay."""
    return min(1.0, (step + 1) / _WARMUP_STEPS) * max(0.02, 1 - step / num_steps)


def _mean_variance(texts: PrefixTexts, teacher_rewards: Sequence[Tensor]) -> float:
    """Mean square of the teacher's rewards under the base, over all tokens."""
    total = count = 0.0
    for batch in texts.batches:
        for place, text in zip(batch.places, batch.texts, strict=True):
            wanted = teacher_rewards[place].unsqueeze(-1).to(text.z_B.device).float()
            total += float(base_mean_square(wanted, text.z_B).sum())
            count += len(text.z_B)
    return max(total / max(count, 1), 1e-6)


def sentence_prefix(
    backbone: InstructedBackbone, tokens: Any, num_tokens: int
) -> InstructionPrefix:
    """A sentence's own keys and values, over and over up to `num_tokens`, as a place to start from.

    tokens: an InstructionTokens. A sentence whose tokens do not go in twice is cut.
    """
    prefix = backbone.read_instruction(tokens, num_tokens)
    return InstructionPrefix(
        tuple(keys[:, :num_tokens] for keys in prefix.keys),
        tuple(values[:, :num_tokens] for values in prefix.values),
    )
