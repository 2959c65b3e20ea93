"""The base's candidates at every token of an answer, and the rewards that another prompt gives to them.

In: a PersRM's base, prompts, DrawnAnswers. Out: tensors over the candidates, [n, K], for scripts that compare
rewards. A prompt's reward of a candidate is how much likelier the base finds it behind that prompt than
behind the plain one. Rewards have zero mean under the base: what all candidates share steers nothing.
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
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction


class AnswerCandidates(NamedTuple):
    """The base's K best tokens at each of an answer's n positions."""

    p: Tensor  # [n, K] float64, the base's probabilities among the candidates
    z: Tensor  # [n, K] float32, the base's logits
    ids: Tensor  # [n, K] int64 token ids
    h: Tensor  # [n, H] float32, the base's final hidden states


class CandidateReader:
    """Reads answers behind their own prompt, and behind others."""

    def __init__(self, model: PersRM, tokenizer: Any, top_k: int) -> None:
        """Of one base.

        Args:
            model: The PersRM whose backbone is the base.
            tokenizer: Of the base, with its chat template.
            top_k: Candidates a token.
        """
        self.model, self.tokenizer, self.top_k = model, tokenizer, top_k

    @classmethod
    def from_adapter(cls, base: str, adapter: Adapter) -> CandidateReader:
        """Loads the base in float32; base: any of its names."""
        folder = resolve_base(base)
        backbone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = load_chat_tokenizer(folder, base, adapter.config.chat_template)
        return cls(PersRM.from_adapter(backbone, adapter), tokenizer, adapter.config.top_k)

    @torch.no_grad()
    def candidates(self, prompt: Conversation, answer: DrawnAnswer) -> AnswerCandidates:
        """The candidates at every token of the answer to the prompt."""
        h = self._hidden(prompt.messages(), answer)
        z, ids = guidance.candidates(self.model.base_logits(h), torch.arange(len(h)), self.top_k)
        return AnswerCandidates(z.double().softmax(-1), z, ids, h)

    def instruction_rewards(
        self,
        prompt: Conversation,
        answer: DrawnAnswer,
        instruction: str,
        candidates: AnswerCandidates,
    ) -> Tensor:
        """Rewards of the candidates by an instruction in the prompt.

        Args:
            prompt: The plain prompt.
            answer: The answer that was read.
            instruction: Text that is appended to the prompt.
            candidates: `candidates` of the same prompt and answer.

        Returns:
            [n, K] float64: how much likelier the instructed base finds each candidate than the base does.
        """
        instructed = with_instruction(prompt.messages(), instruction)
        return self.conversation_rewards(instructed, answer, candidates)

    @torch.no_grad()
    def conversation_rewards(
        self,
        conversation: Sequence[dict[str, str]],
        answer: DrawnAnswer,
        candidates: AnswerCandidates,
    ) -> Tensor:
        """Rewards of the candidates by any other conversation in front of the answer.

        Args:
            conversation: Messages that take the prompt's place.
            answer: The answer that was read.
            candidates: `candidates` of the plain prompt and this answer.

        Returns:
            [n, K] float64, zero mean under the base.
        """
        h = self._hidden(conversation, answer)
        rewards = self.model.base_logits(h).gather(1, candidates.ids) - candidates.z
        return subtract_candidate_mean(rewards.double().unsqueeze(-1), candidates.p).squeeze(-1)

    def _hidden(self, conversation: Any, answer: DrawnAnswer) -> Tensor:
        prompt_ids = chat_token_ids(self.tokenizer, conversation)
        h, _ = self.model.hidden(torch.tensor([[*prompt_ids, *answer.token_ids][:-1]]))
        return h[0, len(prompt_ids) - 1 :].float()


def subtract_candidate_mean(rewards: Tensor, p: Tensor) -> Tensor:
    """rewards [n, K, D] less their mean under p [n, K]."""
    return rewards - torch.einsum("nk,nkd->nd", p, rewards).unsqueeze(1)
