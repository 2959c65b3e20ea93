"""The process of one reward actor: a reward scorer, and the tokens of the rows that the server sent to it.

In: a RowUpdate a row and step, with the new tokens only. Out: rewards. Ray starts it; it imports neither Ray
nor vLLM, and does not know the other actors.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch

from pad_vllm.config import PADConfig
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest
from pad_vllm.text.incremental_encoding import TokenChange


@dataclass(frozen=True)
class RowUpdate:
    """A ScoringRequest without the tokens that the actor has already."""

    key: int
    """As in ScoringRequest."""

    num_kept: int
    """How many of the first tokens that the actor has for the row stay as they are."""

    added: tuple[int, ...]
    """The tokens that follow them."""

    w: tuple[float, ...]
    candidates: tuple[TokenChange, ...]
    must_finish: bool

    def apply_to(self, tokens: list[int]) -> list[int]:
        """Change the row's tokens in place, and return them. Raises LookupError if fewer than `num_kept`."""
        if len(tokens) < self.num_kept:
            # Ray restarted the actor between two calls, or a step failed.
            raise LookupError(
                f"row {self.key}: the actor has {len(tokens)} of the {self.num_kept} tokens to keep"
            )
        tokens[self.num_kept :] = self.added
        return tokens

    def request(self, tokens: list[int]) -> ScoringRequest:
        """The request that this update was made from; tokens: the row's, after `apply_to`."""
        return ScoringRequest(
            key=self.key,
            tokens=tokens,
            w=self.w,
            candidates=self.candidates,
            must_finish=self.must_finish,
            num_unchanged=self.num_kept,
        )


class PersRMActor:
    """One reward model in a process of its own, started by Ray. Imports no vLLM."""

    def __init__(self, settings: dict[str, Any], digest: str, dtype: str) -> None:
        """Load the adapter and its backbone from this host's disk.

        Args:
            settings: fields of PADConfig.
            digest: of the server's adapter.
            dtype: name of a torch type, the reward model's: "bfloat16".

        Raises:
            ValueError: the adapter on this host has another digest, or its backbone does not fit it.
        """
        from pad_vllm.adapter.adapter_folder import load_adapter
        from pad_vllm.engines.reward_model.scorer_loader import (
            make_reward_scorer,
            require_reward_backbone,
        )

        pad = PADConfig(**settings)
        device = pad.device or ("cuda" if torch.cuda.is_available() else "cpu")
        adapter = load_adapter(pad.adapter)
        _require_digest(pad.adapter, adapter.digest, digest)
        require_reward_backbone(pad, adapter)  # checks the files on this host
        self._scorer = make_reward_scorer(
            pad,
            adapter,
            FailureLog(logging.getLogger(__name__).warning),
            dtype=getattr(torch, dtype),
            device=torch.device(device),
        )
        self._tokens: dict[int, list[int]] = {}
        self._busy: deque[tuple[float, float]] = deque(maxlen=1000)

    def step(self, updates: list[RowUpdate]) -> Any:
        """Score one step's rows: rewards [G, K] float32, as numpy.

        Raises LookupError where the actor does not have the tokens that an update keeps.
        """
        begun = time.time()
        # A step that fails leaves no tokens: the server then sends them whole.
        previous_tokens, self._tokens = self._tokens, {}
        tokens = {
            update.key: update.apply_to(previous_tokens.get(update.key, [])) for update in updates
        }
        requests = [update.request(tokens[update.key]) for update in updates]
        rewards = self._scorer(requests).cpu().numpy()
        self._tokens = tokens
        self._busy.append((begun, time.time()))
        return rewards

    def ready(self) -> dict[str, Any]:
        """Counts of the scorer, and its used blocks. Ray answers this call once the model is loaded."""
        return {**vars(self._scorer.counts), "used_blocks": self._scorer.used_blocks}

    def busy(self) -> list[tuple[float, float]]:
        """Begin and end of the last 1,000 steps, in Unix time (seconds)."""
        return list(self._busy)

    def pid(self) -> int:
        """The actor's process id."""
        return os.getpid()


def _require_digest(path: str, actor_digest: str, server_digest: str) -> None:
    if actor_digest != server_digest:
        raise ValueError(
            f"the adapter {path} on the actor's host {platform.node()} has digest {actor_digest}; accepted "
            f"is the server's, {server_digest}. Copy the server's folder to that host, or name one that all "
            "hosts of the cluster share."
        )
