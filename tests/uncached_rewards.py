"""Psi, the sum of R_w over an answer, by two full forwards over the whole text: what engines are held to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.persrm import PersRM


class UncachedRewards:
    """Nothing is kept from one call to the next."""

    def __init__(self, backbone: Path, adapter: Adapter) -> None:
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32).eval()
        self.persrm = PersRM.from_adapter(model, adapter)
        self.dimensions = adapter.config.dimensions

    @torch.inference_mode()
    def psi(self, tokens: list[int], start: int, w: Sequence[float]) -> float:
        """Sum of R_w of tokens[start:]."""
        if start >= len(tokens):
            return 0.0
        h_B, h_T = self.persrm.hidden_twice(torch.tensor([tokens]))
        before = slice(start - 1, len(tokens) - 1)
        taken = torch.tensor(tokens[start:]).unsqueeze(-1)
        weights = torch.tensor(w).expand(len(tokens) - start, -1)
        return self.persrm.rewards(h_B[0, before], h_T[0, before], taken, weights).sum().item()

    def reward(
        self,
        tokens: list[int],
        change: tuple[int, tuple[int, ...]],
        w: Sequence[float],
        *,
        exact: bool,
    ) -> float:
        """Of one candidate: Psi of the changed tokens less Psi of the tokens as they are."""
        keep, added = change
        said = added if exact else added[:1]
        return self.psi([*tokens[:keep], *said], keep, w) - self.psi(tokens, keep, w)
