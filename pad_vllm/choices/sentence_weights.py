"""Weights of a sentence ("Be short and a bit ironic."), without training and without choices.

    R*(a) = < e_a, h_told - h_B >       what the sentence in the prompt pays for a candidate
    w = argmin sum over tokens of E_B (R* - sum_i w_i phi_i)^2      least squares over the base's candidates

In: a CandidateReader, the sentence, some prompts. Out: w and the share of R* that the adapter's dimensions
explain together. The base's own answers to the prompts are drawn here, greedily. The mathematics is that of
reward_space.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.reward_space import ChangePrompt, ReadAnswer, RewardSpace
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction

_PROMPTS = Path(__file__).with_name("sentence_prompts.txt")
_ANSWER_TOKENS = 24
_SENTENCE = "sentence"  # its name among the changed prompts
LITTLE = 0.1
"""A smaller share of a sentence's rewards is chance, or nearly so."""

IsInterrupted = Callable[[], bool]


def is_foreign(explained: float) -> bool:
    """Whether the dimensions hardly have anything to do with a sentence of which they explain this share.

    explained: NaN of a sentence that teaches the base nothing.
    """
    return not explained >= LITTLE


class SentenceWeights(NamedTuple):
    """What the adapter's D dimensions make of a sentence."""

    w: Tensor
    """[D] float64, the largest |w| is 1."""

    explained: float
    """Share of the sentence's rewards, 0 to 1."""


class _PlainAnswer(NamedTuple):
    token_ids: tuple[int, ...]


class SentenceReader:
    """Reads sentences by the same prompts and the base's own answers to them, which are drawn once."""

    def __init__(self, reader: CandidateReader, prompts: Sequence[Conversation]) -> None:
        """Draw nothing yet.

        Args:
            reader: of the base, with the adapter's reward model.
            prompts: of any kind, such as `sentence_prompts()`.
        """
        self._space = RewardSpace(reader)
        self._waiting, self._read = list(prompts), list[ReadAnswer]()

    def read_ahead(self, is_interrupted: IsInterrupted = lambda: False) -> bool:
        """Draw the answer to one more prompt, and read it. False: there is none left.

        is_interrupted: asked after each token whether to stop; this answer is then drawn another time.
        """
        if not self._waiting:
            return False
        prompt = self._waiting[0]
        answer = _plain_answer(self._space.reader, prompt, is_interrupted)
        if not is_interrupted():
            self._read.append(self._space.read_answer(prompt, answer))
            del self._waiting[0]
        return True

    def weights(self, sentence: str) -> SentenceWeights:
        """Weights under which guided answers come nearest to those of a base that was told the sentence.

        sentence: as a user would add it to a prompt.

        Raises:
            ValueError: a sentence without text; an adapter whose heads are untrained.
        """
        if not sentence.strip():
            raise ValueError(
                "the sentence is empty; accepted: text such as 'Be short and a bit ironic.'"
            )
        while self.read_ahead():
            pass
        if not self._space.gram.any():
            raise ValueError(
                "every reward of the adapter is zero, so no weights say a sentence; accepted: a trained "
                "adapter"
            )
        return self._projected(partial(with_instruction, text=sentence))

    def _projected(self, change: ChangePrompt) -> SentenceWeights:
        space, dimensions = self._space, self._space.model.dimensions
        space.prompt_products.clear()
        for read in self._read:
            space.read_change(_SENTENCE, change, read)
        weights, explained = space.project(_SENTENCE, dimensions)
        w = torch.tensor([weights[name] for name in dimensions]).double()
        largest = w.abs().max()
        return SentenceWeights(w / largest if largest > 0 else w, explained)


def sentence_prompts() -> tuple[Conversation, ...]:
    """The 16 prompts that ship: about 400 tokens of answers, each with all its candidates."""
    return tuple(map(Conversation.model_validate, _PROMPTS.read_text("utf-8").splitlines()))


@torch.no_grad()
def _plain_answer(
    reader: CandidateReader, prompt: Conversation, is_interrupted: IsInterrupted
) -> _PlainAnswer:
    from transformers import StoppingCriteriaList

    def stop(token_ids: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.full((len(token_ids),), is_interrupted(), device=token_ids.device)

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
            stopping_criteria=StoppingCriteriaList([stop]),
            pad_token_id=0,  # one row: nothing is padded, and None is warned of
        )
    return _PlainAnswer(tuple(found[0, ids.shape[1] :].tolist()))
