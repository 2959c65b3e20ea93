"""Everything that training reads of a prompt: the fork cache, branches and, later, the frozen trunk.

In: groups. Out: their responses, read from files if these exist, computed otherwise. Which file holds what,
and what its name depends on, is decided here and nowhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from pad_vllm.training.work_estimate import WorkEstimate

_CHUNK = 32
"""Groups computed at a time: enough to batch similar lengths, few to lose when killed."""

ProgressCallback = Callable[[str, int, int], None]
"""Called with (what is being done, number done, total)."""


class TrainingStore:
    """The responses of any group, under the settings of one run."""

    def __init__(
        self,
        model: PersRM,
        tokenizer: Any,
        settings: Settings,
        folder: Path,
        backbone_identity: str,
    ) -> None:
        """Nothing is read, computed or written yet.

        Args:
            model: the PersRM that is trained.
            tokenizer: the base's.
            settings: of the run; with `cached` off, no files are read or written.
            folder: of the files; other runs may share it.
            backbone_identity: the backbone's fingerprint, a part of the files' names.
        """
        self.model, self.tokenizer, self.settings, self.folder = model, tokenizer, settings, folder
        self.device = model.head_A.device
        recipe = settings.recipe
        self.fork_identity = [
            backbone_identity,
            model.fork_layer,
            settings.dtype,
            recipe.candidates,
        ]
        if model.heads_only and settings.dtype != "bfloat16":
            self.fork_identity.append("states in bfloat16")
        self.keeps_forked = True
        """Whether files hold the activations at the fork; otherwise the layers below it run in every step."""
        self.fork_files = GroupTensorFiles(folder / "forks", {"fork": self.fork_identity})
        drawn = [recipe.branch_share, recipe.seed, next_token_pairs.SCORER_WINDOW]
        self.branch_files = GroupTensorFiles(
            folder / "branches",
            {"fork": self.fork_identity, "drawn": drawn},
            group_identity=lambda group: [group.prefix_scorers],
        )
        self.trunk_files: GroupTensorFiles | None = None
        """Set by `freeze_trunk`."""

    def keep_no_forked(self) -> None:
        """Store what the answers need of the base, but not the activations at the fork, which take most room.

        Called before anything is stored or read. Stage 1 then runs the layers below the fork again.
        """
        self.keeps_forked = False
        depends_on = {"fork": self.fork_identity, "forked": "computed again"}
        self.fork_files = GroupTensorFiles(self.folder / "forks", depends_on)

    def work(self, groups: Sequence[PromptGroup]) -> WorkEstimate:
        """What `build` will take for those of the groups (of all workers) that have no file yet."""
        return self.whole_work(self.fork_files.missing(groups) if self.settings.cached else [])

    def whole_work(self, groups: Sequence[PromptGroup]) -> WorkEstimate:
        """What `build` takes if none of the groups (of all workers) has a file."""
        tokens, predicted = _num_tokens(groups)
        H, K = self.model.head_A.shape[-1], self.settings.recipe.candidates
        width = 2 if self.settings.dtype == "bfloat16" or self.model.heads_only else 4
        has_forked = self.keeps_forked and not self.model.heads_only
        states = predicted + (tokens if has_forked else 0)
        # Of a candidate the token id and the logit; of a token which candidate was taken.
        return WorkEstimate(tokens, width * states * H + predicted * (K * (4 + 4) + 2))

    def trunk_work(self, groups: Sequence[PromptGroup]) -> WorkEstimate:
        """What `freeze_trunk` will take for the groups (of all workers); nothing with heads only."""
        if self.model.heads_only or not self.settings.cached:
            return WorkEstimate(0, 0)
        tokens, predicted = _num_tokens(groups)
        width = 2 if self.settings.dtype == "bfloat16" else 4
        return WorkEstimate(tokens, width * predicted * self.model.head_A.shape[-1])

    def build(
        self,
        groups: Sequence[PromptGroup],
        rank: int,
        world: int,
        progress: ProgressCallback,
        *,
        with_targets: bool,
    ) -> None:
        """Compute and store this worker's share of the files that are missing.

        Args:
            groups: of all workers.
            rank: this worker's number, from 0.
            world: number of workers.
            progress: called now and then.
            with_targets: branches, too, which only training groups need.
        """
        if not self.settings.cached:
            return
        own = groups[rank::world]
        missing = self.fork_files.missing(own)
        for start in range(0, len(missing), _CHUNK):
            progress("fork activations", start, len(missing))
            chunk = missing[start : start + _CHUNK]
            computed = compute_responses(self.model, chunk, self.settings.recipe.candidates)
            for group, responses in zip(chunk, computed, strict=True):
                kept = [stored_tensors(one, with_forked=self.keeps_forked) for one in responses]
                self.fork_files.write(group, kept)
        if with_targets and self.settings.recipe.branch_share > 0:
            missing = self.branch_files.missing(own)
            for number, group in enumerate(missing):
                if number % 50 == 0:
                    progress("scores of next tokens", number, len(missing))
                ids = [tensors["ids"] for tensors in self.fork_files.read(group)]
                self.branch_files.write(group, self._score_branches(group, ids))

    def _score_branches(self, group: PromptGroup, ids: Sequence[Tensor]) -> list[NamedTensors]:
        """`score_branches` of each response. ids: its candidates [n, K]."""
        score_tokens = next_token_pairs.token_scorer(self.tokenizer, group.prefix_scorers)
        recipe = self.settings.recipe
        return [
            next_token_pairs.score_branches(
                response_ids, candidates, score_tokens, recipe.branch_share, recipe.seed
            )
            for response_ids, candidates in zip(group.response_ids, ids, strict=True)
        ]

    def responses(self, group: PromptGroup, *, with_targets: bool = False) -> list[CachedResponse]:
        """The responses of a group, on the model's device; with branches if `with_targets`."""
        if self.settings.cached:
            responses = self._read(group)
        else:
            responses = compute_responses(self.model, [group], self.settings.recipe.candidates)[0]
        if with_targets and self.settings.recipe.branch_share > 0:
            responses = self._with_branches(group, responses)
        if self.trunk_files is not None:
            responses = [
                replace(response, h_T=tensors["h_T"])
                for response, tensors in zip(responses, self.trunk_files.read(group), strict=True)
            ]
        return [response.to(self.device) for response in responses]

    def _read(self, group: PromptGroup) -> list[CachedResponse]:
        """What is stored, with the tokens where the layers below the fork are to read them again."""
        responses = [CachedResponse(**tensors) for tensors in self.fork_files.read(group)]
        if self.keeps_forked:
            return responses
        return [
            replace(response, token_ids=torch.tensor([*group.prompt_ids, *ids][:-1]))
            for response, ids in zip(responses, group.response_ids, strict=True)
        ]

    def _with_branches(
        self, group: PromptGroup, responses: list[CachedResponse]
    ) -> list[CachedResponse]:
        branches = (
            self.branch_files.read(group)
            if self.settings.cached
            else self._score_branches(group, [response.ids for response in responses])
        )
        # Files hold scores in the scorers' units: a spread depends on all other prompts.
        return [
            replace(
                response,
                branch_at=tensors["at"],
                branch_scores=tensors["scores"] / group.prefix_spread,
            )
            for response, tensors in zip(responses, branches, strict=True)
        ]

    @torch.no_grad()
    def freeze_trunk(
        self,
        groups: Sequence[PromptGroup],
        folder: Path,
        rank: int,
        world: int,
        progress: ProgressCallback,
    ) -> None:
        """Store h_T of every group under the LoRA as it is now, so that stage 2 runs no layer.

        Args:
            groups: of all workers.
            folder: of the files.
            rank: this worker's number, from 0.
            world: number of workers.
            progress: called now and then.
        """
        digest = hashlib.sha256()
        for a, b in self.model.lora_weights().values():
            digest.update(a.detach().cpu().numpy().tobytes())
            digest.update(b.detach().cpu().numpy().tobytes())
        files = GroupTensorFiles(folder, {"fork": self.fork_identity, "lora": digest.hexdigest()})
        self.trunk_files = None  # until all exist: the responses they are computed from have no h_T
        missing = files.missing(groups[rank::world])
        for number, group in enumerate(missing):
            if number % 50 == 0:
                progress("trunk activations", number, len(missing))
            hidden = trunk_hidden(self.model, self.responses(group))
            files.write(group, [{"h_T": h} for h in hidden])
        self.trunk_files = files


def _num_tokens(groups: Sequence[PromptGroup]) -> tuple[int, int]:
    """Tokens that the base reads of the groups' sequences, and those that it predicts of their answers."""
    lengths = [
        (len(group.prompt_ids) + len(ids) - 1, len(ids))
        for group in groups
        for ids in group.response_ids
    ]
    return sum(total for total, _ in lengths), sum(n for _, n in lengths)
