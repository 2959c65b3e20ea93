"""What training needs of the frozen model, computed once: fork activations and the base's candidates.

In: a PersRM and groups. Out: one Response each, so that an epoch runs the top layers alone.
Knows nothing of losses or preferences.
"""

from __future__ import annotations

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
        for row, (g, r, ids, n) in enumerate(chunk):
            stop = len(ids) - 1
            hidden = h_B[row, stop - n : stop]
            taken = torch.tensor(ids[-n:])
            picked = _candidates(model.base_logits(hidden), taken, k)
            out[g][r] = Response(forked[row, :stop].clone(), hidden.clone(), *picked)
    return [[row[r] for r in sorted(row)] for row in out]


def trunk_hidden(model: PersRM, responses: list[Response]) -> list[Tensor]:
    """h_T [n, H] of each response, from the cached fork activations in one padded batch."""
    padded = pad_sequence([r.forked for r in responses], batch_first=True)
    hidden = model.trunk(padded)
    return [r.tail(hidden[row]) for row, r in enumerate(responses)]
