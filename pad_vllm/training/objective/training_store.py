"""Everything training reads of a prompt: the fork cache, the branches and, later, the frozen trunk.

In: groups. Out: their responses, from files where they are there, computed where not. Which file holds
what, and what it depends on, is decided here and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pad_vllm.persrm import PersRM
from pad_vllm.training.data.prompt_groups import Group
from pad_vllm.training.objective import next_token_pairs
from pad_vllm.training.objective.fork_cache import CachedResponse, Kept, Tensors, compact, compute
from pad_vllm.training.objective.loss_module import trunk_hidden
from pad_vllm.training.settings import Settings

_CHUNK = 32
"""Groups computed at a time: enough to batch similar lengths, few to lose when killed."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the prompts done and their total."""


class Store:
    """The responses of any group, under the settings of one run.

    folder: where files are kept. identity: the backbone's fingerprint.
    """

    def __init__(
        self, model: PersRM, tokenizer: Any, settings: Settings, folder: Path, identity: str
    ) -> None:
        self.model, self.tokenizer, self.settings, self.folder = model, tokenizer, settings, folder
        self.device = model.head_A.device
        recipe = settings.recipe
        self.of_fork = [identity, model.fork_layer, settings.dtype, recipe.candidates]
        self.forks = Kept(folder / "forks", {"fork": self.of_fork})
        drawn = [recipe.branch_share, recipe.seed, next_token_pairs.WINDOW]
        self.branches = Kept(
            folder / "branches",
            {"fork": self.of_fork, "drawn": drawn},
            of_group=lambda group: [group.scorers],
        )
        self.trunk: Kept | None = None

    def build(
        self, groups: Sequence[Group], rank: int, world: int, progress: Progress, *, scored: bool
    ) -> None:
        """Compute this worker's share of what is missing; `scored` says whether branches are wanted."""
        if not self.settings.cached:
            return
        missing = self.forks.missing(groups[rank::world])
        for start in range(0, len(missing), _CHUNK):
            progress("fork activations", start, len(missing))
            chunk = missing[start : start + _CHUNK]
            made = compute(self.model, chunk, self.settings.recipe.candidates)
            for group, responses in zip(chunk, made, strict=True):
                self.forks.write(group, [compact(response) for response in responses])
        if scored and self.settings.recipe.branch_share > 0:
            unscored = self.branches.missing(groups[rank::world])
            for number, group in enumerate(unscored):
                if number % 50 == 0:
                    progress("scores of next tokens", number, len(unscored))
                ids = [response["ids"] for response in self.forks.read(group)]
                self.branches.write(group, self._score(group, ids))

    def _score(self, group: Group, ids: Sequence[torch.Tensor]) -> list[Tensors]:
        scored = next_token_pairs.scored_by(self.tokenizer, group.scorers)
        recipe = self.settings.recipe
        return [
            next_token_pairs.branches(tokens, candidates, scored, recipe.branch_share, recipe.seed)
            for tokens, candidates in zip(group.response_ids, ids, strict=True)
        ]

    def responses(self, group: Group, *, scored: bool = False) -> list[CachedResponse]:
        """Of one group, on the model's device; with branches where `scored`."""
        if self.settings.cached:
            responses = [CachedResponse(**tensors) for tensors in self.forks.read(group)]
        else:
            responses = compute(self.model, [group], self.settings.recipe.candidates)[0]
        if scored and self.settings.recipe.branch_share > 0:
            kept = self.branches.read(group) if self.settings.cached else None
            rows = kept or self._score(group, [response.ids for response in responses])
            # Here, for files hold scorers' own units: a spread depends on all other prompts.
            responses = [
                replace(response, branch_at=row["at"], branch_scores=row["scores"] / group.spread)
                for response, row in zip(responses, rows, strict=True)
            ]
        if self.trunk is not None:
            rows = self.trunk.read(group)
            responses = [
                replace(response, h_T=row["h_T"])
                for response, row in zip(responses, rows, strict=True)
            ]
        return [response.to(self.device) for response in responses]

    @torch.no_grad()
    def freeze_trunk(
        self, groups: Sequence[Group], folder: Path, rank: int, world: int, progress: Progress
    ) -> None:
        """Store h_T of every group under the LoRA as it is now, so that stage 2 runs no layer."""
        digest = hashlib.sha256()
        for a, b in self.model.lora_weights().values():
            digest.update(a.detach().cpu().numpy().tobytes())
            digest.update(b.detach().cpu().numpy().tobytes())
        kept = Kept(folder, {"fork": self.of_fork, "lora": digest.hexdigest()})
        self.trunk = None  # until it is all there: what is read to make it has no h_T
        missing = kept.missing(groups[rank::world])
        for number, group in enumerate(missing):
            if number % 50 == 0:
                progress("trunk activations", number, len(missing))
            hidden = trunk_hidden(self.model, self.responses(group))
            kept.write(group, [{"h_T": h} for h in hidden])
        self.trunk = kept
