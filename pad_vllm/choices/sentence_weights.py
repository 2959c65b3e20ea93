"""Weights of a sentence ("Be short and a bit ironic.") or of a dialogue, without training and choices.

    R*(a) = < e_a, h_told - h_B >       what the sentence, or the dialogue, in the prompt pays for a candidate
    w = argmin sum over tokens of E_B (R* - sum_i w_i phi_i)^2      least squares over the base's candidates

In: a CandidateReader, the sentence or the turns, some prompts. Out: w, and of a sentence the share of R* that
the adapter's dimensions explain together. The base's own answers to the prompts are drawn here, greedily. The
mathematics is that of reward_space.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.reward_space import (
    ChangePrompt,
    ReadAnswer,
    RewardSpace,
    read_plain_answer,
)
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction

_PROMPTS = Path(__file__).with_name("sentence_prompts.txt")
_CHANGED = "changed"  # the one changed prompt's name
LITTLE = 0.1
"""A smaller share of a sentence's rewards is chance, or nearly so."""

DIALOGUE_PROMPTS = 4
"""Of the prompts, the first by which a dialogue is read: each is a forward pass over the whole dialogue."""

ANSWER_TOKENS = 24
"""Of an answer to a prompt, at most."""

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
    """Reads sentences and dialogues by the same prompts and the base's own answers to them, which are drawn
    once.
    """

    def __init__(self, reader: CandidateReader, prompts: Sequence[Conversation]) -> None:
        """Draw nothing yet.

        Args:
            reader: of the base, with the adapter's reward model.
            prompts: of any kind, such as `sentence_prompts()`.
        """
        self.prompts = tuple(prompts)
        self.dimensions = reader.model.dimensions
        self._reader = reader
        self._waiting, self._read = list(prompts), list[ReadAnswer]()

    def read_ahead(self, is_interrupted: IsInterrupted = lambda: False) -> bool:
        """Draw the answer to one more prompt, and read it. False: there is none left.

        is_interrupted: asked after each token whether to stop; this answer is then drawn another time.
        """
        if not self._waiting:
            return False
        prompt = self._waiting[0]
        answer = _plain_answer(self._reader, prompt, is_interrupted)
        if not is_interrupted():
            self._read.append(read_plain_answer(self._reader, prompt, answer))
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
        w, explained = self._projected(self._read, partial(with_instruction, text=sentence))
        largest = w.abs().max()
        return SentenceWeights(w / largest if largest > 0 else w, explained)

    def dialogue_weights(
        self, turns: Sequence[dict[str, str]], num_prompts: int = DIALOGUE_PROMPTS
    ) -> Tensor:
        """[D] float64 weights under which guided answers come nearest to those behind a dialogue. They are
        not scaled: the less a dialogue teaches, the smaller they are. A dimension's own sentence has more or
        less than 1 here, by how its heads were trained (dialogue_units.py measures them).

        Args:
            turns: messages of user and assistant, in front of each prompt.
            num_prompts: how many of the prompts it is read by.

        Raises:
            ValueError: an adapter whose heads are untrained.
            jinja2.TemplateError: turns that the chat template rejects.
        """
        return self._change_weights(lambda messages: [*turns, *messages], num_prompts)

    def instruction_weights(self, text: str, num_prompts: int = DIALOGUE_PROMPTS) -> Tensor:
        """[D] float64 weights of an instruction in the prompt, not scaled, to compare a dialogue's with.

        Args:
            text: such as a dimension was taught by.
            num_prompts: as in `dialogue_weights`.

        Raises:
            ValueError: an adapter whose heads are untrained.
        """
        return self._change_weights(partial(with_instruction, text=text), num_prompts)

    def plain_answer(
        self, prompt: Conversation, max_tokens: int, is_interrupted: IsInterrupted = lambda: False
    ) -> str:
        """The base's own greedy answer, as text.

        Args:
            prompt: what is asked.
            max_tokens: of the answer, at most.
            is_interrupted: as in `read_ahead`; the answer is then cut off.
        """
        found = _plain_answer(self._reader, prompt, is_interrupted, max_tokens)
        return self._reader.tokenizer.decode(found.token_ids, skip_special_tokens=True)

    def _change_weights(self, change: ChangePrompt, num_prompts: int) -> Tensor:
        while len(self._read) < num_prompts and self.read_ahead():
            pass
        w, _ = self._projected(self._read[:num_prompts], change)
        return w

    def _projected(
        self, answers: Sequence[ReadAnswer], change: ChangePrompt
    ) -> tuple[Tensor, float]:
        """Weights [D] of what a changed prompt teaches, and the share of it that they explain.

        Args:
            answers: by which it is read.
            change: puts the sentence or the dialogue into a prompt.

        Raises:
            ValueError: there is nothing to project on.
        """
        space = RewardSpace(self._reader)
        for read in answers:
            space.add_answer(read)
        if not space.gram.any():
            raise ValueError(
                "every reward of the adapter is zero, so no weights say a sentence or a dialogue; accepted: "
                "a trained adapter"
            )
        for read in answers:
            space.read_change(_CHANGED, change, read)
        weights, explained = space.project(_CHANGED, space.model.dimensions)
        return torch.tensor(list(weights.values())).double(), explained


def sentence_prompts() -> tuple[Conversation, ...]:
    """The 16 prompts that ship: about 400 tokens of answers, each with all its candidates."""
    return tuple(map(Conversation.model_validate, _PROMPTS.read_text("utf-8").splitlines()))


@torch.no_grad()
def _plain_answer(
    reader: CandidateReader,
    prompt: Conversation,
    is_interrupted: IsInterrupted,
    max_tokens: int = ANSWER_TOKENS,
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
            max_new_tokens=max_tokens,
            stopping_criteria=StoppingCriteriaList([stop]),
            pad_token_id=0,  # one row: nothing is padded, and None is warned of
        )
    return _PlainAnswer(tuple(found[0, ids.shape[1] :].tolist()))
