"""Peer methods over the base's candidates, as Transformers' logits processors.

In: a model, another prompt or a reward model, the base's logits. Out: logits that sample as the peer would.
Knows no prompts' texts and no judges.
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


def even_weights(value: PersRM, *names: str) -> Tensor:
    """[D], 1 for these dimensions."""
    return torch.tensor([float(name in names) for name in value.dimensions])


class TwoContextsProcessor(LogitsProcessor):
    """Adds strength * (log p_instructed - log p_B) to the base's best top_k tokens; the instructed prompt has
    a KV cache of its own.
    """

    def __init__(
        self, model: Any, ids: Tensor, mask: Tensor, strength: float, top_k: int = 20
    ) -> None:
        """For one batch.

        Args:
            model: The model that generates.
            ids: [N, T] int64 instructed prompts, left-padded.
            mask: [N, T] int64, 0 for padding.
            strength: Factor of the difference.
            top_k: The base's candidates.
        """
        self.model, self.ids, self.mask = model, ids, mask
        self.strength, self.top_k = strength, top_k
        self.cache: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new_ids = self.ids if self.cache is None else input_ids[:, -1:]
        if self.cache is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(new_ids)], -1)
        positions = (self.mask.cumsum(-1) - 1).clamp_min(0)[:, -new_ids.shape[1] :]
        output = self.model(
            input_ids=new_ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = output.past_key_values
        best = scores.topk(self.top_k).indices
        difference = output.logits[:, -1].float().log_softmax(-1) - scores.log_softmax(-1)
        guided = scores + self.strength * difference
        return torch.full_like(scores, NEG_INF).scatter(1, best, guided.gather(1, best))


class HiddenStateProcessor(LogitsProcessor):
    """Has the final hidden states [N, H] of the last forward, by a hook on `lm_head` within `with`."""

    def __init__(self, model: Any) -> None:
        self.model, self.hidden = model, torch.empty(0)

    def __enter__(self) -> Self:
        def store_input(_: Any, inputs: tuple[Tensor, ...]) -> None:
            self.hidden = inputs[0][:, -1].float()

        self.hook = self.model.lm_head.register_forward_pre_hook(store_input)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


class ValueFilterProcessor(HiddenStateProcessor):
    """Keeps the token that the base draws, unless its value is below `threshold`; then the candidate of the
    highest value takes its place.

    A token's value is R_w less its mean over the candidates under the base.
    """

    def __init__(
        self,
        model: Any,
        value: PersRM,
        w: Tensor,
        *,
        threshold: float,
        temperature: float,
        top_k: int = 20,
    ) -> None:
        """For any batches of one dimension.

        Args:
            model: The model that generates.
            value: Heads only, over the same base.
            w: [D] weights.
            threshold: Least value of a token that is kept.
            temperature: Of the draw; 0 is greedy.
            top_k: The base's candidates.
        """
        super().__init__(model)
        self.value, self.w, self.threshold = value, w, threshold
        self.temperature, self.top_k = temperature, top_k

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        z, ids = scores.topk(self.top_k)
        p = (z / (self.temperature or 1.0)).softmax(-1)
        drawn = torch.multinomial(p, 1) if self.temperature else torch.zeros_like(ids[:, :1])
        rewards = self.value.rewards(self.hidden, self.hidden, ids, self.w)
        values = guidance.centred_rewards(z, rewards, torch.full((len(z),), self.top_k))
        too_low = values.gather(1, drawn) < self.threshold
        chosen = torch.where(too_low, values.argmax(-1, keepdim=True), drawn)
        return torch.full_like(scores, NEG_INF).scatter(1, ids.gather(1, chosen), 0.0)


class CombinedValuesProcessor(HiddenStateProcessor):
    """PAD's rule with one reward combined from those of several reward models."""

    def __init__(
        self,
        model: Any,
        values: Sequence[PersRM],
        w: Tensor,
        combine: Callable[[Tensor], Tensor],
        settings: AdapterConfig,
        eos_token_ids: Sequence[int],
    ) -> None:
        """For any batches of one preference.

        Args:
            model: The model that generates.
            values: M reward models, heads only, over `model`.
            w: [D] weights.
            combine: [M, N, K] rewards -> [N, K]; each reward model's have zero mean over the candidates under
                the base, which differs between them.
            settings: beta, top_k and min_p are those of this adapter.
            eos_token_ids: Ids that end an answer.
        """
        super().__init__(model)
        self.values, self.w, self.combine, self.settings = values, w, combine, settings
        self.eos_token_ids = torch.tensor(eos_token_ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        del input_ids
        N, settings = len(scores), self.settings
        top_k, rows = torch.full((N,), settings.top_k), torch.arange(N)
        z, ids = guidance.candidates(scores, rows, settings.top_k)
        rewards = [v.rewards(self.hidden, self.hidden, ids, self.w) for v in self.values]
        centred = [guidance.centred_rewards(z, reward, top_k) for reward in rewards]
        reward = self.combine(torch.stack(centred))
        min_p = torch.full((N,), settings.min_p)
        capped = guidance.below_min_p(z, ids, min_p, self.eos_token_ids)
        logits, beta = scores.float(), torch.full((N,), settings.beta)
        guidance.guide(logits, rows, z, ids, reward, beta, top_k, capped)
        return logits
