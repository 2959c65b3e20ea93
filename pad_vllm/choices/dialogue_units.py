"""What weights of dialogues are measured by: 0 is the base's own dialogue, 1 a dimension's own instruction.

In: a SentenceReader, the instructions that taught. Out: DialogueUnits, read part by part, so that what is
asked meanwhile waits for one part at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pad_vllm.choices.sentence_weights import DIALOGUE_PROMPTS, IsInterrupted, SentenceReader

PLAIN_TURNS = 3
"""Questions of the base's own dialogue: the prompts behind those that dialogues are read by."""

PLAIN_TOKENS = 64
"""Of an answer in it, at most. Cut shorter it would teach to be brief, which longer ones do not."""

LEAST_OWN = 0.05
"""A dimension of which its own instruction teaches less is not read from dialogues: that would be chance."""


class DialogueUnits(NamedTuple):
    """What the weights of D dimensions are measured by."""

    plain: Tensor
    """[D] float64, what a dialogue teaches that the base itself answered, liked or not."""

    own: Tensor
    """[D] float64, how much of each dimension its own instruction teaches; 1 where it has none."""

    def measure(self, w: Tensor) -> Tensor:
        """[D] weights in which 0 is the base's own dialogue and 1 what the dimension's own instruction
        teaches; 0 of dimensions of which that is less than LEAST_OWN. w: of `dialogue_weights`.
        """
        known = self.own >= LEAST_OWN
        return ((w - self.plain) / self.own.where(known, 1.0)) * known


class UnitsReader:
    """Reads the units of one adapter on its base."""

    def __init__(
        self,
        sentences: SentenceReader,
        instructions: Mapping[str, str],
        num_prompts: int = DIALOGUE_PROMPTS,
    ) -> None:
        """Read nothing yet.

        Args:
            sentences: by which dialogues are read.
            instructions: by dimension, those that have one.
            num_prompts: by how many prompts dialogues are read.
        """
        self._sentences, self._num_prompts = sentences, num_prompts
        self._questions = list(sentences.prompts[num_prompts : num_prompts + PLAIN_TURNS])
        self._waiting = {d: instructions[d] for d in sentences.dimensions if d in instructions}
        self._turns = list[dict[str, str]]()
        self._own = dict[str, float]()
        self._plain: Tensor | None = None

    def read_ahead(self, is_interrupted: IsInterrupted = lambda: False) -> bool:
        """Read one more part. False: there is none left.

        is_interrupted: as in `SentenceReader.read_ahead`.

        Raises:
            ValueError: an adapter whose heads are untrained.
        """
        if self._questions:
            answer = self._sentences.plain_answer(self._questions[0], PLAIN_TOKENS, is_interrupted)
            if not is_interrupted():
                self._turns += self._questions.pop(0).messages()
                self._turns.append({"role": "assistant", "content": answer})
        elif self._waiting:
            name = next(iter(self._waiting))
            w = self._sentences.instruction_weights(self._waiting[name], self._num_prompts)
            self._own[name] = w[self._sentences.dimensions.index(name)].item()
            del self._waiting[name]
        elif self._plain is None:
            self._plain = self._sentences.dialogue_weights(self._turns, self._num_prompts)
        else:
            return False
        return True

    def units(self) -> DialogueUnits:
        """All of it, read now where it was not. Raises as `read_ahead`."""
        while self._plain is None:
            self.read_ahead()
        own = [self._own.get(name, 1.0) for name in self._sentences.dimensions]
        return DialogueUnits(self._plain, torch.tensor(own).double())
