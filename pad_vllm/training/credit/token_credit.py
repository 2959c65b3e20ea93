"""The credit of each token for its answer's score: GAE, with a critic that knows the score so far.

    y      the answer's score less its prompt's mean, in spreads
    V(t)   ridge regression of y on the state h_t, the score of the text before token t less the mean of the
           prompt's whole answers, and t
    d(t)   = V(t + 1) - V(t), and y - V(n - 1) for the last token
    r(t)   = sum over s >= t of trace^(s - t) d(s)          (Schulman et al. 2016, arXiv 1506.02438)

Most of y's variance cannot be told from the state alone, and half of it from the score so far: credit by y
itself is mostly noise. Prompts lie in two halves; each half's credit is by the critic of the other, under the
penalty that predicts best there, since a critic would know the answers that it has seen by heart.
Shapes: n tokens, D dimensions, F inputs of the critic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pad_vllm.evaluation.lexical_scorers import LEXICAL_SCORERS
from pad_vllm.training.data.preference_record import unit_hash
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.objective.fork_cache import CachedResponse

PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Of the state, in mean squares of a coordinate; the inputs beside it have none."""

_BESIDE = 4  # score so far, the same by t, t, 1


@dataclass(frozen=True)
class CriticPrompt:
    """A prompt's answers as the critic sees them; lists by answer."""

    h: Sequence[Tensor]  # [n, H]
    scores_so_far: Sequence[
        Tensor
    ]  # [n, D] less the mean of the prompt's whole answers, 0 where unknown
    y: Tensor  # [R, D] in spreads, NaN where unknown
    half: int

    def inputs(self, answer: int, dimension: int) -> Tensor:
        """[n, F] of the critic."""
        h, s = self.h[answer].float(), self.scores_so_far[answer][:, dimension]
        t = torch.arange(len(h)) / 100
        return torch.cat([h, torch.stack([s, s * t, t, torch.ones(len(h))], -1)], -1)


def critic_prompt(
    group: PromptGroup, responses: Sequence[CachedResponse], scores_before: Sequence[Tensor]
) -> CriticPrompt:
    """group: scores in spreads. before: of `so_far`."""
    whole = group.scores[:, -1]
    return CriticPrompt(
        [r.h_B.float().cpu() for r in responses],
        scores_before,
        whole - whole.nanmean(0),
        int(unit_hash(f"critic {group.prompt_key}") < 0.5),
    )


def scores_so_far(group: PromptGroup, tokenizer: Any) -> list[Tensor]:
    """Of each answer [n, D]: the scores of the text before each token, less the prompt's mean of wholes.

    0 for a dimension whose scorer cannot be asked about unfinished text.
    """
    tables = [torch.zeros(len(ids) + 1, len(group.prefix_scorers)) for ids in group.response_ids]
    for place, name in enumerate(group.prefix_scorers):
        if name is None:
            continue
        for ids, table in zip(group.response_ids, tables, strict=True):
            texts = [
                tokenizer.decode(ids[:end], skip_special_tokens=True) for end in range(len(ids) + 1)
            ]
            table[:, place] = torch.tensor([LEXICAL_SCORERS[name](text) for text in texts])
    mean = torch.stack([table[-1] for table in tables]).mean(0)
    return [table[:-1] - mean for table in tables]


@dataclass
class CriticStatistics:
    """Its sums over the answers, by half and dimension; `fit` solves them."""

    xx: Tensor  # [2, D, F, F]
    xy: Tensor  # [2, D, F]
    yy: Tensor  # [2, D]

    @classmethod
    def zeros(cls, dimensions: int, hidden: int) -> CriticStatistics:
        F = hidden + _BESIDE
        return cls(
            torch.zeros(2, dimensions, F, F),
            torch.zeros(2, dimensions, F),
            torch.zeros(2, dimensions),
        )

    def add(self, prompt: CriticPrompt) -> None:
        for answer, dimension in _known(prompt):
            x, y, half = prompt.inputs(answer, dimension), prompt.y[answer, dimension], prompt.half
            self.xx[half, dimension] += x.T @ x
            self.xy[half, dimension] += x.sum(0) * y
            self.yy[half, dimension] += y**2 * len(x)

    def map_sums(self, function: Callable[[Tensor], Tensor]) -> CriticStatistics:
        """Of every sum; what: Accelerate's reduce, which adds those of all workers up."""
        return CriticStatistics(*map(function, vars(self).values()))

    def fit(self) -> FittedCritic:
        """Each half's critic under the penalty that predicts the other half best."""
        w, told = torch.zeros_like(self.xy), torch.zeros_like(self.yy)
        for half in (0, 1):
            for dimension in range(self.xx.shape[1]):
                tried = [self._solved(half, dimension, penalty) for penalty in PENALTIES]
                left = [self._error(1 - half, dimension, one) for one in tried]
                best = min(range(len(tried)), key=left.__getitem__)
                w[half, dimension] = tried[best]
                told[1 - half, dimension] = 1 - left[best]
        return FittedCritic(w, told.mean(0))

    def _solved(self, half: int, dimension: int, penalty: float) -> Tensor:
        xx = self.xx[half, dimension].double()
        diagonal = xx.diagonal().clone()
        state = diagonal[:-_BESIDE]
        ridge = torch.cat([penalty * state.mean().expand_as(state), 1e-6 * diagonal[-_BESIDE:]])
        whole = xx + torch.diag(ridge + 1e-6)
        return torch.linalg.solve(whole, self.xy[half, dimension].double()).float()

    def _error(self, half: int, dimension: int, w: Tensor) -> float:
        """Share of y's squares that w leaves."""
        xx, xy, yy = self.xx[half, dimension], self.xy[half, dimension], self.yy[half, dimension]
        w = w.double()
        left = yy - 2 * w @ xy.double() + w @ xx.double() @ w
        return float(left / yy.clamp_min(1e-9))


@dataclass(frozen=True)
class FittedCritic:
    """Critics [2, D, F] of either half; told [D]: the share of y's squares that the other half's explains."""

    coefficients: Tensor
    explained: Tensor

    def credit(self, prompt: CriticPrompt, trace: float) -> list[Tensor]:
        """r [n, D] of each answer, 0 where its score is unknown."""
        rows = [torch.zeros(len(h), len(self.explained)) for h in prompt.h]
        for answer, dimension in _known(prompt):
            values = (
                prompt.inputs(answer, dimension) @ self.coefficients[1 - prompt.half, dimension]
            )
            ends = torch.cat([values[1:], prompt.y[answer, dimension][None]])
            rows[answer][:, dimension] = discounted_sums(ends - values, trace)
        return rows


def discounted_sums(steps: Tensor, trace: float) -> Tensor:
    """steps [n] -> at each place the sum of what follows, less by `trace` a token."""
    sums, left = torch.empty_like(steps), torch.zeros(())
    for place in range(len(steps) - 1, -1, -1):
        left = steps[place] + trace * left
        sums[place] = left
    return sums


def _known(prompt: CriticPrompt) -> Iterable[tuple[int, int]]:
    """(answer, dimension) of the scores that there are."""
    return ((int(a), int(d)) for a, d in (~prompt.y.isnan()).nonzero())
