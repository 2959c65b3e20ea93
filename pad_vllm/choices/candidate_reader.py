"""The base's candidates at every token of an answer, and the rewards that another prompt gives to them.

In: a PersRM, prompts, answers as token ids. Out: tensors over the candidates, [n, K]. A prompt's reward of a
candidate is how much likelier the base finds it behind that prompt than behind the plain one. Rewards have
zero mean under the base: what all candidates share steers nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.persrm import PersRM
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction


class TokenAnswer(Protocol):
    """An answer, whoever drew it."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Of the base's tokenizer."""


class AnswerCandidates(NamedTuple):
    """The base's K best tokens at each of an answer's n positions."""

    p: Tensor  # [n, K] float64, the base's probabilities among the candidates
    z: Tensor  # [n, K] float32, the base's logits
    ids: Tensor  # [n, K] int64 token ids
    h: Tensor  # [n, H] float32, the base's final hidden states
    h_T: Tensor  # [n, H] float32, the reward stream's; `h` with heads only


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

    @torch.no_grad()
    def candidates(self, prompt: Conversation, answer: TokenAnswer) -> AnswerCandidates:
        """The candidates at every token of the answer to the prompt."""
        h, h_T = self._hidden(prompt.messages(), answer)
        z, ids = guidance.candidates(self._base_logits(h), torch.arange(len(h)), self.top_k)
        return AnswerCandidates(z.double().softmax(-1), z, ids, h, h_T)

    def instruction_rewards(
        self,
        prompt: Conversation,
        answer: TokenAnswer,
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
        answer: TokenAnswer,
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
        h, _ = self._hidden(conversation, answer)
        rewards = self._base_logits(h).gather(1, candidates.ids) - candidates.z
        return subtract_candidate_mean(rewards.double().unsqueeze(-1), candidates.p).squeeze(-1)

    def _hidden(
        self, conversation: Sequence[dict[str, str]], answer: TokenAnswer
    ) -> tuple[Tensor, Tensor]:
        """(h_B, h_T), each [n, H] float32: the states that predict the answer's tokens."""
        prompt_ids = chat_token_ids(self.tokenizer, conversation)
        ids = torch.tensor([[*prompt_ids, *answer.token_ids][:-1]], device=self.model.head_A.device)
        before = slice(len(prompt_ids) - 1, None)
        h_B, h_T = (h[0, before].float() for h in self.model.hidden(ids))
        return h_B, h_T

    def _base_logits(self, h: Tensor) -> Tensor:
        return self.model.base_logits(h.to(self.model.backbone.lm_head.weight.dtype))


def subtract_candidate_mean(rewards: Tensor, p: Tensor) -> Tensor:
    """rewards [n, K, D] less their mean under p [n, K]."""
    return rewards - torch.einsum("nk,nkd->nd", p, rewards).unsqueeze(1)
