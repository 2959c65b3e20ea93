"""An instruction as engines take it: a sentence as token ids, or a learned prefix by its digest.

Of a sentence: what is read of it, and whose keys and values stand in front of a text. The engine and its
PyTorch twin both keep what this says. Knows no tokenizer, no model and no tensor.
"""

from typing import NamedTuple


class InstructionTokens(NamedTuple):
    """An instruction as token ids of one text."""

    opening: tuple[int, ...]
    """What every conversation begins with: read before the sentence, and not kept."""

    sentence: tuple[int, ...]
    """The instruction's own, one at least."""

    @property
    def text(self) -> tuple[int, ...]:
        """What is read."""
        return self.opening + self.sentence

    def prefix_length(self, block_size: int) -> int:
        """How many keys stand in front of a text: the sentence's twice, and again up to whole blocks.

        Measured: two or three times explain most of what telling the base does (benchmarks/README.md), and
        keys of anything else in a block's empty places do harm.
        """
        return -(-2 * len(self.sentence) // block_size) * block_size

    def kept(self, block_size: int) -> list[int]:
        """Places in `text` of the tokens whose keys and values those are, in the prefix's order."""
        first, own = len(self.opening), len(self.sentence)
        return [first + place % own for place in range(self.prefix_length(block_size))]

    @property
    def num_places(self) -> int:
        """Places in KV blocks that it takes, first to be read and then to be kept."""
        return max(len(self.text), self.prefix_length(1))


class LearnedInstruction(NamedTuple):
    """A learned prefix of an adapter, in the place of a sentence."""

    digest: str
    """LearnedPrefix.digest."""

    num_tokens: int
    """Virtual tokens: whole KV blocks."""

    @property
    def num_places(self) -> int:
        """Places in KV blocks that it takes."""
        return self.num_tokens

    def prefix_length(self, block_size: int) -> int:
        """How many keys stand in front of a text. block_size: a divisor of their number."""
        assert self.num_tokens % block_size == 0
        return self.num_tokens


Instruction = InstructionTokens | LearnedInstruction
