"""The credit of each token for its answer's score: GAE, with a critic that knows the score so far.

    y      the answer's score less its prompt's mean, in spreads
    V(t)   ridge regression of y on the state h_t, the score of the text before token t less the mean of the
           prompt's whole answers, and t
    d(t)   = V(t + 1) - V(t), and y - V(n - 1) for the last token
    r(t)   = sum over s >= t of trace^(s - t) d(s)          (Schulman et al. 2016, arXiv 1506.02438)

Most of y's variance cannot be predicted from the state alone, and half of it from the score so far: y itself
as the credit of every token is mostly noise. Prompts lie in two halves; each half's credit is by the critic
of the other, under the penalty that predicts best there: on answers that it was fitted on, a critic is too
good.
Shapes: n tokens of an answer, R answers, D dimensions, H hidden size, F = H + 4 inputs of the critic.
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
"""Ridge penalties to choose from, in mean squares of a coordinate of the state. Other inputs have none."""

_OTHER_INPUTS = 4  # score so far, score so far times t, t, 1


@dataclass(frozen=True)
class CriticPrompt:
    """A prompt with R answers as the critic sees it; lists are by answer, their tensors on h's device."""

    h: Sequence[Tensor]  # [n, H] state h_t before each token
    scores_so_far: Sequence[Tensor]  # [n, D] of the text before each token; see `scores_so_far`
    # [R, D] scores of whole answers less the prompt's mean, in spreads; NaN if unknown; on the CPU
    y: Tensor
    half: int  # 0 or 1: which half of the prompts it belongs to

    def inputs(self, answer: int, dimension: int) -> Tensor:
        """[n, F] inputs of the critic of a dimension at every token of an answer."""
        h, s = self.h[answer].float(), self.scores_so_far[answer][:, dimension]
        t = torch.arange(len(h), device=h.device) / 100
        return torch.cat([h, torch.stack([s, s * t, t, torch.ones_like(t)], -1)], -1)


def critic_prompt(
    group: PromptGroup, responses: Sequence[CachedResponse], scores_before: Sequence[Tensor]
) -> CriticPrompt:
    """What the critic needs of a group.

    Args:
        group: A prompt with R answers, scores in spreads.
        responses: Its R answers, from the store.
        scores_before: What `scores_so_far` returned of it.
    """
    whole = group.scores[:, -1]
    return CriticPrompt(
        [r.h_B.float() for r in responses],
        [scores.to(r.h_B.device) for scores, r in zip(scores_before, responses, strict=True)],
        (whole - whole.nanmean(0)).cpu(),
        int(unit_hash(f"critic {group.prompt_key}") < 0.5),
    )


def scores_so_far(group: PromptGroup, tokenizer: Any) -> list[Tensor]:
    """For each answer [n, D]: the score of the text before each token, less the mean over whole answers.

    0 for a dimension whose scorer cannot score unfinished text.
    """
    tables = [torch.zeros(len(ids) + 1, len(group.prefix_scorers)) for ids in group.response_ids]
    for dimension, name in enumerate(group.prefix_scorers):
        if name is None:
            continue
        for ids, table in zip(group.response_ids, tables, strict=True):
            texts = [
                tokenizer.decode(ids[:end], skip_special_tokens=True) for end in range(len(ids) + 1)
            ]
            table[:, dimension] = torch.tensor([LEXICAL_SCORERS[name](text) for text in texts])
    mean = torch.stack([table[-1] for table in tables]).mean(0)
    return [table[:-1] - mean for table in tables]


@dataclass
class CriticStatistics:
    """Sums over the tokens of answers by half of the prompts and dimension, on the device of the states;
    `fit` solves them.
    """

    xx: Tensor  # [2, D, F, F] sum of x x^T, x the critic's inputs
    xy: Tensor  # [2, D, F] sum of x y
    yy: Tensor  # [2, D] sum of y^2

    @classmethod
    def zeros(
        cls, dimensions: int, hidden: int, device: torch.device | None = None
    ) -> CriticStatistics:
        """The sums over no tokens; device: None is the CPU."""
        F = hidden + _OTHER_INPUTS
        shapes = (2, dimensions, F, F), (2, dimensions, F), (2, dimensions)
        return cls(*(torch.zeros(shape, device=device) for shape in shapes))

    def add(self, prompt: CriticPrompt) -> None:
        """Add the tokens of a prompt's answers, of the dimensions whose scores are known."""
        half, products = prompt.half, [h.T @ h for h in prompt.h]  # the same for all dimensions
        for answer, dimension in _scored_answers(prompt):
            x, y = prompt.inputs(answer, dimension), prompt.y[answer, dimension]
            H, xx = prompt.h[answer].shape[-1], self.xx[half, dimension]
            others = x[:, H:].T @ x
            xx[:H, :H] += products[answer]
            xx[H:] += others
            xx[:H, H:] += others[:, :H].T
            self.xy[half, dimension] += x.sum(0) * y
            self.yy[half, dimension] += y**2 * len(x)

    def map_sums(self, function: Callable[[Tensor], Tensor]) -> CriticStatistics:
        """`function` of every sum; Accelerate's reduce adds up those of all workers."""
        return CriticStatistics(*map(function, vars(self).values()))

    def fit(self) -> FittedCritic:
        """The critic of each half, under the penalty that predicts the other half best."""
        coefficients, explained = torch.zeros_like(self.xy), torch.zeros_like(self.yy)
        for half in (0, 1):
            for dimension in range(self.xx.shape[1]):
                solutions = [self._solve(half, dimension, penalty) for penalty in PENALTIES]
                errors = [self._error(1 - half, dimension, solution) for solution in solutions]
                best = min(range(len(errors)), key=errors.__getitem__)
                coefficients[half, dimension] = solutions[best]
                explained[1 - half, dimension] = 1 - errors[best]
        return FittedCritic(coefficients, explained.mean(0).cpu())

    def _solve(self, half: int, dimension: int, penalty: float) -> Tensor:
        """[F] ridge regression of y on the critic's inputs."""
        xx = self.xx[half, dimension].double()
        diagonal = xx.diagonal().clone()
        state = diagonal[:-_OTHER_INPUTS]
        others = 1e-6 * diagonal[-_OTHER_INPUTS:]
        ridge = torch.cat([penalty * state.mean().expand_as(state), others])
        penalised = xx + torch.diag(ridge + 1e-6)
        return torch.linalg.solve(penalised, self.xy[half, dimension].double()).float()

    def _error(self, half: int, dimension: int, coefficients: Tensor) -> float:
        """Share of y's squares that a critic [F] does not explain."""
        xx, xy, yy = self.xx[half, dimension], self.xy[half, dimension], self.yy[half, dimension]
        w = coefficients.double()
        error = yy - 2 * w @ xy.double() + w @ xx.double() @ w
        return float(error / yy.clamp_min(1e-9))


@dataclass(frozen=True)
class FittedCritic:
    """A critic for each half of the prompts; a prompt's credit is by the critic of the other half."""

    coefficients: Tensor  # [2, D, F] fitted on the half of that number; on the states' device
    explained: Tensor  # [D] share of y's squares explained on the other half, mean of both

    def credit(self, prompt: CriticPrompt, trace: float) -> list[Tensor]:
        """Credit r [n, D] of each answer's tokens, 0 where its score is unknown, on the CPU.

        trace: lambda of GAE.
        """
        rows = [torch.zeros(len(h), len(self.explained)) for h in prompt.h]
        for answer, dimension in _scored_answers(prompt):
            values = (
                prompt.inputs(answer, dimension) @ self.coefficients[1 - prompt.half, dimension]
            ).cpu()  # a sum over later tokens is a loop over them
            ends = torch.cat([values[1:], prompt.y[answer, dimension][None]])
            rows[answer][:, dimension] = discounted_sums(ends - values, trace)
        return rows


def discounted_sums(steps: Tensor, trace: float) -> Tensor:
    """[n] -> [n]: at each position the sum of it and all later ones, times `trace` for each token between."""
    sums, total = torch.empty_like(steps), torch.zeros(())
    for position in range(len(steps) - 1, -1, -1):
        total = steps[position] + trace * total
        sums[position] = total
    return sums


def _scored_answers(prompt: CriticPrompt) -> Iterable[tuple[int, int]]:
    """(answer, dimension) of every known score."""
    return ((int(a), int(d)) for a, d in (~prompt.y.isnan()).nonzero())
