"""What training needs of the frozen model, computed once and stored on disk: the fork cache.

In: a PersRM and groups. Out: `CachedResponse`s, memory-mapped from one safetensors file a group. A file's
name is a digest of all it depends on (weights, fork, dtype, candidates, tokens), so that a second run, a
resumed run and another machine on the same folder find it, and no outdated file is ever read. Files appear
whole or not at all. An epoch then runs only the layers above the fork. Knows nothing of losses.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

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
    """One response of n tokens after a prompt of S - n tokens, as the frozen model sees it.

    The names of the first five fields are those of the stored tensors (`stored_tensors`).
    """

    forked: Tensor
    """[S - 1, H] residual stream at the fork; the last token is only predicted. [0, H] with heads only, and
    where the layers below the fork are computed again."""

    h_B: Tensor
    """[n, H] the base's final hidden states that predict the response's tokens. With heads only bfloat16,
    whatever the backbone's type: they are most of what is stored."""

    ids: Tensor
    """[n, K] token ids of the candidates: the base's top-k, the taken token among them."""

    z_B: Tensor
    """[n, K] the base's logits of the candidates."""

    chosen: Tensor
    """[n] index of the taken token among the K candidates."""

    h_T: Tensor | None = None
    """[n, H] final hidden states under the trunk, once it is frozen."""

    branch_at: Tensor | None = None
    """[m] int64, indices of the tokens whose alternatives were scored."""

    branch_scores: Tensor | None = None
    """[m, K, D] scores of the text with each candidate in the taken token's place, in spreads."""

    teacher_rewards: Tensor | None = None
    """[n, K, D] rewards that distillation (training/distillation) learns."""

    token_ids: Tensor | None = None
    """[S - 1] int64, all tokens but the last, where `forked` is computed again."""

    def response_rows(self, hidden: Tensor) -> Tensor:
        """The rows of hidden states [>= S - 1, H] that predict the response's tokens -> [n, H]."""
        stop = len(self.forked if self.token_ids is None else self.token_ids)
        return hidden[stop - len(self.h_B) : stop]

    def to(self, device: torch.device) -> CachedResponse:
        """A copy with all tensors on the device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if v is not None}
        return replace(self, **moved)


def training_candidates(logits: Tensor, taken: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of every token: the base's top-k; a taken token outside them replaces the last.

    Args:
        logits: [n, V] of the base.
        taken: [n] int64 token ids of the response.
        k: number K of candidates.

    Returns:
        ids [n, K] int64; their logits z_B [n, K]; the index of the taken token among them [n] int64.
    """
    ids = logits.topk(k).indices
    inside = (ids == taken.unsqueeze(-1)).any(-1)
    ids[:, -1] = torch.where(inside, ids[:, -1], taken)
    chosen = (ids == taken.unsqueeze(-1)).int().argmax(-1)
    return ids, logits.gather(-1, ids), chosen


class _Sequence(NamedTuple):
    """A prompt with one of its responses."""

    group: int
    response: int
    ids: list[int]
    response_length: int


@torch.no_grad()
def compute_responses(
    model: PersRM, groups: Sequence[PromptGroup], k: int, batch_size: int = 16
) -> list[list[CachedResponse]]:
    """Compute the responses of groups by full forward passes, without the files.

    Args:
        model: its base, at its fork layer.
        groups: G groups.
        k: number of candidates.
        batch_size: sequences in one forward pass.

    Returns:
        G lists of the groups' responses, in their order, on the model's device.
    """
    sequences = [
        _Sequence(g, r, group.prompt_ids + ids, len(ids))
        for g, group in enumerate(groups)
        for r, ids in enumerate(group.response_ids)
    ]
    sequences.sort(key=lambda sequence: len(sequence.ids))
    computed: dict[tuple[int, int], CachedResponse] = {}
    for start in range(0, len(sequences), batch_size):
        batch = sequences[start : start + batch_size]
        for sequence, response in zip(batch, _forward(model, batch, k), strict=True):
            computed[sequence.group, sequence.response] = response
    return [
        [computed[g, r] for r in range(len(group.response_ids))] for g, group in enumerate(groups)
    ]


def _forward(model: PersRM, batch: Sequence[_Sequence], k: int) -> Iterator[CachedResponse]:
    """The responses of a batch of sequences, in their order."""
    device = model.head_A.device
    inputs = pad_sequence([torch.tensor(s.ids[:-1]) for s in batch], batch_first=True)
    forked = model.states_below_fork(inputs.to(device))
    h_B = model.base_states(forked)
    rows = [
        h_B[row, len(s.ids) - 1 - s.response_length : len(s.ids) - 1] for row, s in enumerate(batch)
    ]
    taken = torch.tensor([t for s in batch for t in s.ids[-s.response_length :]], device=device)
    # One product for all responses: logits of tens of MB each, freed one by one, fragment the heap.
    ids, z_B, chosen = training_candidates(model.base_logits(torch.cat(rows)), taken, k)
    first = 0
    for row, sequence in enumerate(batch):
        part = slice(first, first + sequence.response_length)
        first = part.stop
        # Heads only run no layer again; of the final hidden states, those of the answer are in h_B.
        length = 0 if model.heads_only else len(sequence.ids) - 1
        yield CachedResponse(
            forked=forked[row, :length].clone(),
            h_B=rows[row].to(torch.bfloat16, copy=True) if model.heads_only else rows[row].clone(),
            ids=ids[part].clone(),
            z_B=z_B[part].clone(),
            chosen=chosen[part].clone(),
        )


class GroupTensorFiles:
    """Tensors of prompt groups in a folder: one safetensors file a group, with tensors for each response."""

    def __init__(
        self,
        folder: Path,
        depends_on: dict[str, Any],
        group_identity: Callable[[PromptGroup], list[Any]] = lambda _: [],
    ) -> None:
        """Files are named by a digest of what they depend on. Nothing is read or written yet.

        Args:
            folder: made when a file is written.
            depends_on: JSON, what the tensors depend on besides the group.
            group_identity: JSON of what they depend on of the group, besides its token ids.
        """
        self.folder, self.group_identity = folder, group_identity
        self.seed = hashlib.sha256(json.dumps([_FORMAT, depends_on], sort_keys=True).encode())

    def path(self, group: PromptGroup) -> Path:
        """The group's file, whether or not it exists."""
        digest = self.seed.copy()
        identity = [group.prompt_ids, group.response_ids, *self.group_identity(group)]
        digest.update(json.dumps(identity).encode())
        name = digest.hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.safetensors"

    def missing(self, groups: Sequence[PromptGroup]) -> list[PromptGroup]:
        """The groups that have no file, in their order."""
        return [group for group in groups if not self.path(group).exists()]

    def write(self, group: PromptGroup, responses: Sequence[NamedTensors]) -> None:
        """Store the tensors of each response. An empty tensor keeps its shape."""
        path = self.path(group)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not the process's number, which another host on the same folder may have too.
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        tensors_of_group = {
            f"{row}.{name}": tensor.contiguous()
            for row, tensors in enumerate(responses)
            for name, tensor in tensors.items()
        }
        save_file(tensors_of_group, draft)
        draft.replace(path)

    def read(self, group: PromptGroup) -> list[NamedTensors]:
        """The tensors of each response, on the CPU. Raises FileNotFoundError if there is no file."""
        responses: list[NamedTensors] = [{} for _ in group.response_ids]
        for key, tensor in load_file(self.path(group)).items():
            row, name = key.split(".", 1)
            responses[int(row)][name] = tensor
        return responses


def stored_tensors(response: CachedResponse, *, with_forked: bool = True) -> NamedTensors:
    """A response as it is stored: int32 candidates, int16 indices, the rest in its own types.

    with_forked: whether the activations at the fork are stored too.
    """
    return {
        "forked": response.forked if with_forked else response.forked[:0],
        "h_B": response.h_B,
        "ids": response.ids.int(),
        "z_B": response.z_B,
        "chosen": response.chosen.short(),
    }
