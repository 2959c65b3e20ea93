"""What training needs of the frozen model, computed once: fork activations and the base's candidates.

In: a PersRM and groups. Out: one Response each, so that an epoch runs the top layers alone.
Knows nothing of losses or preferences.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad_vllm.persrm import PersRM
from pad_vllm.training.data import Group


@dataclass
class Response:
    """One response of n tokens after S - n prompt tokens. h_T is filled when the trunk is frozen."""

    forked: Tensor  # [S - 1, H] residual stream at the fork; the last token is only predicted
    h_B: Tensor  # [n, H]
    ids: Tensor  # [n, K] candidates: the base's top-k, the taken token among them
    z_B: Tensor  # [n, K] their base logits
    chosen: Tensor  # [n] the taken token's place in ids
    h_T: Tensor | None = None  # [n, H]
    branch_at: Tensor | None = None  # [m] tokens where the alternatives were scored
    branch_scores: Tensor | None = None  # [m, K, D] what each candidate would have made of the text

    def tail(self, hidden: Tensor) -> Tensor:
        """The rows of hidden [>= S - 1, H] that predict the response's tokens -> [n, H]."""
        stop = len(self.forked)
        return hidden[stop - len(self.h_B) : stop]


def _candidates(logits: Tensor, taken: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top-k of logits [n, V]; a taken token [n] outside them replaces the last: (ids, z_B, chosen)."""
    ids = logits.topk(k).indices
    inside = (ids == taken.unsqueeze(-1)).any(-1)
    ids[:, -1] = torch.where(inside, ids[:, -1], taken)
    chosen = (ids == taken.unsqueeze(-1)).int().argmax(-1)
    return ids, logits.gather(-1, ids), chosen


@torch.no_grad()
def build(model: PersRM, groups: list[Group], k: int, batch: int = 16) -> list[list[Response]]:
    """The cached responses of every group, in the groups' order."""
    items = [
        (g, r, group.prompt_ids + ids, len(ids))
        for g, group in enumerate(groups)
        for r, ids in enumerate(group.response_ids)
    ]
    items.sort(key=lambda item: len(item[2]))
    out: list[dict[int, Response]] = [{} for _ in groups]
    for start in range(0, len(items), batch):
        chunk = items[start : start + batch]
        padded = pad_sequence([torch.tensor(ids[:-1]) for _, _, ids, _ in chunk], batch_first=True)
        forked = model.fork(padded)
        h_B = model.reference(forked)
        tails = [
            h_B[row, len(ids) - 1 - n : len(ids) - 1] for row, (_, _, ids, n) in enumerate(chunk)
        ]
        taken = torch.tensor([token for _, _, ids, n in chunk for token in ids[-n:]])
        # One large matrix: many of tens of MB, freed between small clones, fragment the heap.
        picked = _candidates(model.base_logits(torch.cat(tails)), taken, k)
        parts = zip(*(part.split([len(t) for t in tails]) for part in picked), strict=True)
        for row, ((g, r, ids, _), tail, part) in enumerate(zip(chunk, tails, parts, strict=True)):
            forked_row = forked[row, : len(ids) - 1].clone()
            out[g][r] = Response(forked_row, tail.clone(), *(one.clone() for one in part))
    return [[row[r] for r in sorted(row)] for row in out]


def add_branches(
    groups: list[Group],
    cached: list[list[Response]],
    scored: Callable[[list[int]], list[float]],
    *,
    share: float,
    window: int = 24,
    seed: int = 0,
) -> None:
    """Score what the candidates at a random `share` of tokens would have made of the text.

    Two continuations of one beginning by one token are a preference pair like any other, and the
    one that says which token was at fault. scored: token ids of the last `window` tokens and a
    candidate -> a score a dimension. Scores are in spreads over candidates that differ.
    """
    rng = random.Random(seed)
    found = []
    for group, responses in zip(groups, cached, strict=True):
        for ids, response in zip(group.response_ids, responses, strict=True):
            at = [t for t in range(2, len(ids)) if rng.random() < share]
            rows = [
                [scored([*ids[max(0, t - window) : t], a]) for a in response.ids[t].tolist()]
                for t in at
            ]
            if rows:
                scores = torch.tensor(rows)
                found.append((response, torch.tensor(at), scores - scores.mean(1, keepdim=True)))
    spread = torch.cat([scores.flatten(0, 1) for _, _, scores in found])
    scale = spread.abs().sum(0) / (spread.abs() > 1e-6).sum(0).clamp_min(1)
    for scored_response, places, scores in found:
        telling = (scores.abs() > 1e-6).any(-1).any(-1)
        scored_response.branch_at = places[telling]
        scored_response.branch_scores = scores[telling] / scale.clamp_min(1e-6)


def trunk_hidden(model: PersRM, responses: list[Response]) -> list[Tensor]:
    """h_T [n, H] of each response, from the cached fork activations in one padded batch."""
    padded = pad_sequence([r.forked for r in responses], batch_first=True)
    hidden = model.trunk(padded)
    return [r.tail(hidden[row]) for row, r in enumerate(responses)]
