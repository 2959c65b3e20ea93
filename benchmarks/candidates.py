"""The base's candidates at every token of an answer, and what the base pays to them once it is told a wish.

In: a PersRM's base, prompts, Answers. Out: tensors over the candidates, [n, K], for scripts that compare
rewards. Those are centred under the base: what all candidates share steers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pad_vllm import guidance
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.persrm import PersRM
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.data.conversation import Conversation


class Seen(NamedTuple):
    """An answer's n tokens, K candidates each."""

    p: Tensor  # [n, K] float64, the base's probabilities among them
    z: Tensor  # [n, K] its logits
    ids: Tensor  # [n, K]
    h: Tensor  # [n, H] its hidden states


class Reader:
    """Reads answers with and without a wish behind the prompt."""

    def __init__(self, model: PersRM, tokenizer: Any, top_k: int) -> None:
        self.model, self.tokenizer, self.top_k = model, tokenizer, top_k

    @classmethod
    def of(cls, base: str, adapter: Adapter) -> Reader:
        """base: by any of its names."""
        folder = resolve_base(base)
        backbone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = load_chat_tokenizer(folder, base, adapter.config.chat_template)
        return cls(PersRM.from_adapter(backbone, adapter), tokenizer, adapter.config.top_k)

    @torch.no_grad()
    def plain(self, prompt: Conversation, answer: DrawnAnswer) -> Seen:
        h = self._hidden(prompt.messages(), answer)
        z, ids = guidance.candidates(self.model.base_logits(h), torch.arange(len(h)), self.top_k)
        return Seen(z.double().softmax(-1), z, ids, h)

    def told(self, prompt: Conversation, answer: DrawnAnswer, sentence: str, seen: Seen) -> Tensor:
        """[n, K] float64: how much likelier the told base finds each candidate than the base does."""
        return self.paid(with_instruction(prompt.messages(), sentence), answer, seen)

    @torch.no_grad()
    def paid(self, chat: Sequence[dict[str, str]], answer: DrawnAnswer, seen: Seen) -> Tensor:
        """The same of a base that has read `chat`, whatever it says."""
        h = self._hidden(chat, answer)
        paid = self.model.base_logits(h).gather(1, seen.ids) - seen.z
        return centred(paid.double().unsqueeze(-1), seen.p).squeeze(-1)

    def _hidden(self, chat: Any, answer: DrawnAnswer) -> Tensor:
        prompt = chat_token_ids(self.tokenizer, chat)
        h, _ = self.model.hidden(torch.tensor([[*prompt, *answer.token_ids][:-1]]))
        return h[0, len(prompt) - 1 :].float()


def centred(rewards: Tensor, p: Tensor) -> Tensor:
    """rewards [n, K, D] less their mean under p [n, K]."""
    return rewards - torch.einsum("nk,nkd->nd", p, rewards).unsqueeze(1)
