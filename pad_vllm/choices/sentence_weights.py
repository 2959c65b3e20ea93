"""Weights of a sentence ("Be short and a bit ironic."), without training and without choices.

    R*(a) = < e_a, h_told - h_B >       what the sentence in the prompt pays for a candidate
    w = argmin sum over tokens of E_B (R* - sum_i w_i phi_i)^2      least squares over the base's candidates

In: a CandidateReader, the sentence, some prompts. Out: w and the share of R* that the adapter's dimensions
explain together. The base's own answers to the prompts are drawn here, greedily. The mathematics is that of
reward_space.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.reward_space import RewardSpace
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction

PROMPTS = 16
"""Of these are read: about 400 tokens, each with all its candidates."""

_ANSWER_TOKENS = 24
_LITTLE = 0.1


class SentenceWeights(NamedTuple):
    """What the adapter's D dimensions make of a sentence."""

    w: Tensor
    """[D] float64, the largest |w| is 1."""

    explained: float
    """Share of the sentence's rewards, 0 to 1."""

    @property
    def is_foreign(self) -> bool:
        """Whether the dimensions hardly have anything to do with the sentence."""
        return self.explained < _LITTLE


class _PlainAnswer(NamedTuple):
    token_ids: tuple[int, ...]


def sentence_weights(
    reader: CandidateReader, sentence: str, prompts: Sequence[Conversation]
) -> SentenceWeights:
    """Weights under which guided answers come nearest to those of a base that was told the sentence.

    Args:
        reader: of the base, with the adapter's reward model.
        sentence: as a user would add it to a prompt.
        prompts: of any kind, such as PROMPTS of those that ship.

    Raises:
        ValueError: a sentence without text; an adapter whose heads are untrained.
    """
    if not sentence.strip():
        raise ValueError(
            "the sentence is empty; accepted: text such as 'Be short and a bit ironic.'"
        )
    space, dimensions = RewardSpace(reader), reader.model.dimensions
    answers = [_plain_answer(reader, prompt) for prompt in prompts]
    space.read(prompts, answers, {sentence: partial(with_instruction, text=sentence)})
    if not space.gram.any():
        raise ValueError(
            "every reward of the adapter is zero, so no weights say a sentence; accepted: a trained adapter"
        )
    weights, explained = space.project(sentence, dimensions)
    w = torch.tensor([weights[name] for name in dimensions]).double()
    largest = w.abs().max()
    return SentenceWeights(w / largest if largest > 0 else w, explained)


@torch.no_grad()
def _plain_answer(reader: CandidateReader, prompt: Conversation) -> _PlainAnswer:
    model = reader.model
    ids = torch.tensor(
        [chat_token_ids(reader.tokenizer, prompt.messages())], device=model.head_A.device
    )
    with model.adapter_off():
        found = model.backbone.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=_ANSWER_TOKENS,
            pad_token_id=0,  # one row: nothing is padded, and None is warned of
        )
    return _PlainAnswer(tuple(found[0, ids.shape[1] :].tolist()))
