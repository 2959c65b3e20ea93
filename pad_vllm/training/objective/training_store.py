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
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.objective import next_token_pairs
from pad_vllm.training.objective.fork_cache import (
    CachedResponse,
    GroupTensorFiles,
    NamedTensors,
    compute_responses,
    stored_tensors,
)
from pad_vllm.training.objective.loss_module import trunk_hidden
from pad_vllm.training.settings import Settings

_CHUNK = 32
"""Groups computed at a time: enough to batch similar lengths, few to lose when killed."""

ProgressCallback = Callable[[str, int, int], None]
"""Called with what is being done, the prompts done and their total."""


class TrainingStore:
    """The responses of any group, under the settings of one run.

    folder: where files are kept. identity: the backbone's fingerprint.
    """

    def __init__(
        self,
        model: PersRM,
        tokenizer: Any,
        settings: Settings,
        folder: Path,
        backbone_identity: str,
    ) -> None:
        self.model, self.tokenizer, self.settings, self.folder = model, tokenizer, settings, folder
        self.device = model.head_A.device
        recipe = settings.recipe
        self.fork_identity = [
            backbone_identity,
            model.fork_layer,
            settings.dtype,
            recipe.candidates,
        ]
        self.fork_files = GroupTensorFiles(folder / "forks", {"fork": self.fork_identity})
        drawn = [recipe.branch_share, recipe.seed, next_token_pairs.SCORER_WINDOW]
        self.branch_files = GroupTensorFiles(
            folder / "branches",
            {"fork": self.fork_identity, "drawn": drawn},
            group_identity=lambda group: [group.prefix_scorers],
        )
        self.trunk_files: GroupTensorFiles | None = None

    def build(
        self,
        groups: Sequence[PromptGroup],
        rank: int,
        world: int,
        progress: ProgressCallback,
        *,
        with_targets: bool,
    ) -> None:
        """Compute this worker's share of what is missing; `scored` says whether branches are wanted."""
        if not self.settings.cached:
            return
        missing = self.fork_files.missing(groups[rank::world])
        for start in range(0, len(missing), _CHUNK):
            progress("fork activations", start, len(missing))
            chunk = missing[start : start + _CHUNK]
            made = compute_responses(self.model, chunk, self.settings.recipe.candidates)
            for group, responses in zip(chunk, made, strict=True):
                self.fork_files.write(group, [stored_tensors(response) for response in responses])
        if with_targets and self.settings.recipe.branch_share > 0:
            unscored = self.branch_files.missing(groups[rank::world])
            for number, group in enumerate(unscored):
                if number % 50 == 0:
                    progress("scores of next tokens", number, len(unscored))
                ids = [response["ids"] for response in self.fork_files.read(group)]
                self.branch_files.write(group, self._score(group, ids))

    def _score(self, group: PromptGroup, ids: Sequence[torch.Tensor]) -> list[NamedTensors]:
        scored = next_token_pairs.token_scorer(self.tokenizer, group.prefix_scorers)
        recipe = self.settings.recipe
        return [
            next_token_pairs.score_branches(
                tokens, candidates, scored, recipe.branch_share, recipe.seed
            )
            for tokens, candidates in zip(group.response_ids, ids, strict=True)
        ]

    def responses(self, group: PromptGroup, *, with_targets: bool = False) -> list[CachedResponse]:
        """Of one group, on the model's device; with branches where `scored`."""
        if self.settings.cached:
            responses = [CachedResponse(**tensors) for tensors in self.fork_files.read(group)]
        else:
            responses = compute_responses(self.model, [group], self.settings.recipe.candidates)[0]
        if with_targets and self.settings.recipe.branch_share > 0:
            kept = self.branch_files.read(group) if self.settings.cached else None
            rows = kept or self._score(group, [response.ids for response in responses])
            # Here, for files hold scorers' own units: a spread depends on all other prompts.
            responses = [
                replace(
                    response, branch_at=row["at"], branch_scores=row["scores"] / group.prefix_spread
                )
                for response, row in zip(responses, rows, strict=True)
            ]
        if self.trunk_files is not None:
            rows = self.trunk_files.read(group)
            responses = [
                replace(response, h_T=row["h_T"])
                for response, row in zip(responses, rows, strict=True)
            ]
        return [response.to(self.device) for response in responses]

    @torch.no_grad()
    def freeze_trunk(
        self,
        groups: Sequence[PromptGroup],
        folder: Path,
        rank: int,
        world: int,
        progress: ProgressCallback,
    ) -> None:
        """Store h_T of every group under the LoRA as it is now, so that stage 2 runs no layer."""
        digest = hashlib.sha256()
        for a, b in self.model.lora_weights().values():
            digest.update(a.detach().cpu().numpy().tobytes())
            digest.update(b.detach().cpu().numpy().tobytes())
        kept = GroupTensorFiles(folder, {"fork": self.fork_identity, "lora": digest.hexdigest()})
        self.trunk_files = None  # until it is all there: what is read to make it has no h_T
        missing = kept.missing(groups[rank::world])
        for number, group in enumerate(missing):
            if number % 50 == 0:
                progress("trunk activations", number, len(missing))
            hidden = trunk_hidden(self.model, self.responses(group))
            kept.write(group, [{"h_T": h} for h in hidden])
        self.trunk_files = kept
