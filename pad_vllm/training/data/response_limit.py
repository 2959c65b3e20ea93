"""How many tokens of an answer are read: given, or chosen by the data; and what is cut, in words.

In: the lengths of all answers, in tokens, and the backbone's context. Out: `ResponseLimit`. A score belongs
to the whole answer, so the limit by default cuts next to none; it is a percentile and not the longest answer,
because one answer that never ended would decide the memory of the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILE = 99
"""Of the answers' lengths: the limit where none is given."""


@dataclass(frozen=True)
class ResponseLimit:
    """The most tokens of an answer, and how many answers of the data are longer."""

    tokens: int
    origin: str
    """Where it comes from, in words."""

    answers: int
    cut: int
    longest: int
    """Tokens of the longest answer."""

    @classmethod
    def choose(
        cls, lengths: Sequence[int], given: int | None, max_prompt: int, context: int | None
    ) -> ResponseLimit:
        """The limit of a run.

        Args:
            lengths: tokens of each answer.
            given: the user's limit; None: PERCENTILE of the lengths, within the context.
            max_prompt: most tokens of a prompt, for which the context must have room too.
            context: tokens that the backbone reads at most; None: unknown.

        Raises:
            ValueError: prompts leave no room in the context.
        """
        ordered = sorted(lengths) or [2]
        percentile = ordered[math.ceil(len(ordered) * PERCENTILE / 100) - 1]
        tokens, origin = (
            max(percentile, 2),
            f"the {PERCENTILE}th percentile of the answers' lengths",
        )
        if context is not None and tokens > context - max_prompt:
            tokens, origin = (
                context - max_prompt,
                f"what --max-prompt leaves of a context of {context}",
            )
        if given is not None:
            tokens, origin = given, "as asked for"
        if tokens < 2:
            raise ValueError(
                f"--max-prompt {max_prompt} leaves no room for answers in the base's context of {context}; "
                "lower it"
            )
        cut = sum(length > tokens for length in lengths)
        return cls(tokens, origin, len(lengths), cut, ordered[-1])

    def lines(self, unlabelled: int) -> list[str]:
        """What the log says of it. unlabelled: how many of the cut answers were left out."""
        limit = (
            f"answers are read up to {self.tokens} tokens ({self.origin}; the longest of {self.answers} has "
            f"{self.longest})"
        )
        if not self.cut:
            return [limit]
        warning = (
            f"WARNING: {self.cut} of {self.answers} answers ({self.cut / self.answers:.1%}) are longer and "
            f"are cut. A score belongs to the whole answer: {unlabelled} of them are left out; a lexical "
            f"scorer scores what is left of the others. --max-response {self.longest} cuts none"
        )
        return [limit, warning]
