"""Peers' rules over the base's candidates, as Transformers' logits processors.

In: a model, what it was told or what a reward model pays, the base's logits. Out: logits that sample as the
peer would. Knows no prompts and no judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from transformers import LogitsProcessor

from pad_vllm import guidance
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.persrm import PersRM

NEG_INF = float("-inf")


class TwoContexts(LogitsProcessor):
    """Adds by (log p_told - log p_B) to the base's best top_k; the told context has a KV cache of its own."""

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, by: float, top_k: int = 20) -> None:
        self.model, self.ids, self.mask, self.by, self.top_k = model, ids, mask, by, top_k
        self.cache: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        fed = self.ids if self.cache is None else input_ids[:, -1:]
        if self.cache is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(fed)], -1)
        place = (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -fed.shape[1] :]
        said = self.model(
            input_ids=fed,
            attention_mask=self.mask,
            position_ids=place,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = said.past_key_values
        best = scores.topk(self.top_k).indices
        more = said.logits[:, -1].float().log_softmax(-1) - scores.log_softmax(-1)
        guided = torch.full_like(scores, NEG_INF)
        return guided.scatter(1, best, (scores + self.by * more).gather(1, best))


class Watched(LogitsProcessor):
    """Knows what `lm_head` is given: `hidden` [N, H], by a hook that is on within `with`."""

    def __init__(self, model: Any) -> None:
        self.model, self.hidden = model, torch.empty(0)

    def __enter__(self) -> Self:
        def note(_: Any, given: tuple[Tensor, ...]) -> None:
            self.hidden = given[0][:, -1].float()

        self.hook = self.model.lm_head.register_forward_pre_hook(note)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


class ValueFilter(Watched):
    """Draws the base's own token and keeps it, unless it is worth less than `least`; then the best-paid
    candidate takes its place.

    Worth is R_w less the mean over the candidates under the base. model: what decodes. value: heads alone,
    over the same base.
    """

    def __init__(
        self,
        model: Any,
        value: PersRM,
        w: Tensor,
        least: float,
        temperature: float,
        top_k: int = 20,
    ) -> None:
        super().__init__(model)
        self.value, self.w, self.least = value, w, least
        self.temperature, self.top_k = temperature, top_k

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        z, ids = scores.topk(self.top_k)
        p = (z / (self.temperature or 1.0)).softmax(-1)
        own = torch.multinomial(p, 1) if self.temperature else torch.zeros_like(ids[:, :1])
        paid = self.value.rewards(self.hidden, self.hidden, ids, self.w)
        worth = guidance.centred_rewards(z, paid, torch.full((len(z),), self.top_k))
        said = torch.where(worth.gather(1, own) < self.least, worth.argmax(-1, keepdim=True), own)
        return torch.full_like(scores, NEG_INF).scatter(1, ids.gather(1, said), 0.0)


class ManyValues(Watched):
    """PAD's rule over several reward models: `paid` makes one reward [N, K] of theirs [M, N, K], each less
    its mean over the candidates under the base, which no two share. values: heads alone, over `model`.
    """

    def __init__(
        self,
        model: Any,
        values: Sequence[PersRM],
        w: Tensor,
        paid: Callable[[Tensor], Tensor],
        settings: AdapterConfig,
        ends: Sequence[int],
    ) -> None:
        """settings: beta, top_k and min_p are those of this adapter."""
        super().__init__(model)
        self.values, self.w, self.paid, self.settings = values, w, paid, settings
        self.ends = torch.tensor(ends)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        N, settings = len(scores), self.settings
        top_k, rows = torch.full((N,), settings.top_k), torch.arange(N)
        z, ids = guidance.candidates(scores, rows, settings.top_k)
        each = [v.rewards(self.hidden, self.hidden, ids, self.w) for v in self.values]
        reward = self.paid(torch.stack([guidance.centred_rewards(z, one, top_k) for one in each]))
        low = guidance.below_min_p(z, ids, torch.full((N,), settings.min_p), self.ends)
        made, beta = scores.float(), torch.full((N,), settings.beta)
        guidance.guide(made, rows, z, ids, reward, beta, top_k, low)
        return made
