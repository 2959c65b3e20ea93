"""What training needs of the frozen model, computed once and kept on disk: the fork cache.

In: a PersRM and groups. Out: `CachedResponse`s, memory-mapped from one safetensors file a group. A file's
name is a digest of all it depends on (weights, fork, dtype, candidates, tokens), so that a second run, a
resumed run and another machine on the same folder find it, and nothing stale is ever read. Files appear
whole or not at all. An epoch then runs the top layers alone. Knows nothing of losses.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad_vllm.persrm import PersRM
from pad_vllm.training.data.prompt_groups import PromptGroup

_FORMAT = 1
NamedTensors = dict[str, Tensor]


@dataclass(frozen=True)
class CachedResponse:
    """One response of n tokens after S - n prompt tokens."""

    forked: Tensor  # [S - 1, H] residual stream at the fork; the last token is only predicted
    h_B: Tensor  # [n, H]
    ids: Tensor  # [n, K] candidates: the base's top-k, the taken token among them
    z_B: Tensor  # [n, K] their base logits
    chosen: Tensor  # [n] the taken token's place in ids
    h_T: Tensor | None = None  # [n, H] where the trunk is frozen
    branch_at: Tensor | None = None  # [m] tokens where the alternatives were scored
    branch_scores: Tensor | None = None  # [m, K, D] with each candidate instead, in spreads
    teacher_rewards: Tensor | None = None  # [n, K, D] rewards that a teacher pays (training/taught)

    def response_rows(self, hidden: Tensor) -> Tensor:
        """The rows of hidden [>= S - 1, H] that predict the response's tokens -> [n, H]."""
        stop = len(self.forked)
        return hidden[stop - len(self.h_B) : stop]

    def to(self, device: torch.device) -> CachedResponse:
        moved = {k: v.to(device) for k, v in vars(self).items() if v is not None}
        return replace(self, **moved)


def training_candidates(logits: Tensor, taken: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top-k of logits [n, V]; a taken token [n] outside them replaces the last: (ids, z_B, chosen)."""
    ids = logits.topk(k).indices
    inside = (ids == taken.unsqueeze(-1)).any(-1)
    ids[:, -1] = torch.where(inside, ids[:, -1], taken)
    chosen = (ids == taken.unsqueeze(-1)).int().argmax(-1)
    return ids, logits.gather(-1, ids), chosen


@torch.no_grad()
def compute_responses(
    model: PersRM, groups: Sequence[PromptGroup], k: int, batch: int = 16
) -> list[list[CachedResponse]]:
    """The responses of every group by full forward passes, without reading the cache."""
    items = [
        (g, r, group.prompt_ids + ids, len(ids))
        for g, group in enumerate(groups)
        for r, ids in enumerate(group.response_ids)
    ]
    items.sort(key=lambda item: len(item[2]))
    out: list[dict[int, CachedResponse]] = [{} for _ in groups]
    for start in range(0, len(items), batch):
        for (g, r), response in _forward(model, items[start : start + batch], k):
            out[g][r] = response
    return [[row[r] for r in sorted(row)] for row in out]


def _forward(
    model: PersRM, chunk: list[tuple[int, int, list[int], int]], k: int
) -> Iterator[tuple[tuple[int, int], CachedResponse]]:
    device = model.head_A.device
    padded = pad_sequence([torch.tensor(ids[:-1]) for _, _, ids, _ in chunk], batch_first=True)
    forked = model.states_below_fork(padded.to(device))
    h_B = model.base_states(forked)
    tails = [h_B[row, len(ids) - 1 - n : len(ids) - 1] for row, (_, _, ids, n) in enumerate(chunk)]
    taken = torch.tensor([token for _, _, ids, n in chunk for token in ids[-n:]], device=device)
    # One product for all responses: logits of tens of MB each, freed one by one, fragment the heap.
    picked = training_candidates(model.base_logits(torch.cat(tails)), taken, k)
    parts = zip(*(part.split([len(t) for t in tails]) for part in picked), strict=True)
    for row, ((g, r, ids, _), tail, part) in enumerate(zip(chunk, tails, parts, strict=True)):
        # Heads alone run no layer again, and of the final hidden states the answer's are kept in h_B.
        forked_row = forked[row, : 0 if model.heads_only else len(ids) - 1].clone()
        yield (g, r), CachedResponse(forked_row, tail.clone(), *(tensor.clone() for tensor in part))


class GroupTensorFiles:
    """Tensors of groups in a folder, one file a group.

    depends_on: what the tensors depend on beside the group, as JSON; of_group: what of a group beside its
    tokens.
    """

    def __init__(
        self,
        folder: Path,
        depends_on: dict[str, Any],
        group_identity: Callable[[PromptGroup], list[Any]] = lambda _: [],
    ) -> None:
        self.folder, self.group_identity = folder, group_identity
        self.seed = hashlib.sha256(json.dumps([_FORMAT, depends_on], sort_keys=True).encode())

    def path(self, group: PromptGroup) -> Path:
        digest = self.seed.copy()
        named = [group.prompt_ids, group.response_ids, *self.group_identity(group)]
        digest.update(json.dumps(named).encode())
        name = digest.hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def missing(self, groups: Sequence[PromptGroup]) -> list[PromptGroup]:
        return [group for group in groups if not self.path(group).exists()]

    def write(self, group: PromptGroup, responses: Sequence[NamedTensors]) -> None:
        """The tensors of every response; an empty tensor keeps its shape."""
        path = self.path(group)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not the process's number, which another host on the same folder may have too.
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        named = {
            f"{row}.{name}": tensor.contiguous()
            for row, tensors in enumerate(responses)
            for name, tensor in tensors.items()
        }
        save_file(named, draft)
        draft.replace(path)

    def read(self, group: PromptGroup) -> list[NamedTensors]:
        responses: list[NamedTensors] = [{} for _ in group.response_ids]
        for key, tensor in load_file(self.path(group)).items():
            row, name = key.split(".", 1)
            responses[int(row)][name] = tensor
        return responses


def stored_tensors(response: CachedResponse) -> NamedTensors:
    """A response as it is stored: int32 candidates, int16 places, the rest in the backbone's dtype."""
    return {
        "forked": response.forked,
        "h_B": response.h_B,
        "ids": response.ids.int(),
        "z_B": response.z_B,
        "chosen": response.chosen.short(),
    }
