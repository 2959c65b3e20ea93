"""Parses a scorer that a user names, such as `helpful=judge:http://localhost:8000/v1#my-model`.

    NAME                                     a scorer of lexical_scorers.py, its name the dimension
    DIMENSION=NAME                           the same, for a dimension of another name
    DIMENSION=classifier:MODEL[#LABEL]       a sequence classifier of replies, classifier_scorer.py
    DIMENSION=reward:MODEL[#LABEL]           one that reads prompt and reply, such as a reward model of RLHF
    DIMENSION=judge:URL#MODEL[#INSTRUCTION]  a chat model behind an OpenAI-compatible API, chat_judge.py

This module loads no model and sends no request: a scorer does that when it is first called.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from pad_vllm.adapter.manifest import DIMENSION_NAME
from pad_vllm.evaluation.chat_judge import ChatJudge
from pad_vllm.evaluation.classifier_scorer import ClassifierScorer
from pad_vllm.evaluation.lexical_scorers import COMPLETE_ONLY, LEXICAL_SCORERS
from pad_vllm.text.conversation import Conversation

ACCEPTED_SPECS = (
    f"{', '.join(LEXICAL_SCORERS)}; or DIMENSION= and one of those, or classifier:MODEL[#LABEL], "
    "or reward:MODEL[#LABEL], or judge:URL#MODEL[#INSTRUCTION]"
)


class BatchScorer(Protocol):
    """Scores a batch of replies; higher is more of the dimension."""

    @property
    def name(self) -> str:
        """The spec without its dimension: parse_scorer makes the same scorer from it."""

    @property
    def complete_only(self) -> bool:
        """Whether the score of an unfinished reply means nothing."""

    def __call__(self, prompts: Sequence[Conversation], texts: list[str]) -> list[float | None]:
        """One score per text; texts[i] replies to prompts[i]. None is an unknown score, not a low one."""


@dataclass(frozen=True)
class LexicalScorer:
    """A scorer of lexical_scorers.py as a `BatchScorer`."""

    name: str

    @property
    def complete_only(self) -> bool:
        """Whether the score of an unfinished reply means nothing."""
        return self.name in COMPLETE_ONLY

    def __call__(
        self,
        prompts: Sequence[Conversation],  # noqa: ARG002
        texts: list[str],
    ) -> list[float | None]:
        """The score of each text. prompts: not read."""
        return [LEXICAL_SCORERS[self.name](text) for text in texts]


def parse_scorer(spec: str, *, concurrency: int = 8) -> tuple[str, BatchScorer]:
    """(dimension, its scorer) of a spec. Raises ValueError, which lists what is accepted.

    concurrency: number of requests that a judge has in flight at once.
    """
    if spec in LEXICAL_SCORERS:
        return spec, LexicalScorer(spec)
    dimension, equals, scorer = spec.partition("=")
    if not equals or not DIMENSION_NAME.fullmatch(dimension):
        way_out = f" Give it a dimension's name: helpful={spec}." if ":" in dimension else ""
        raise ValueError(f"scorer {spec!r} is not known.{way_out} Accepted: {ACCEPTED_SPECS}")
    return dimension, _make_scorer(dimension, scorer, concurrency)


def _make_scorer(dimension: str, spec: str, concurrency: int) -> BatchScorer:
    if spec in LEXICAL_SCORERS:
        return LexicalScorer(spec)
    kind, _, arguments = spec.partition(":")
    if kind in ("classifier", "reward") and (model := arguments.partition("#")[0]):
        label = arguments.partition("#")[2] or None
        return ClassifierScorer(model, label, reads_prompt=kind == "reward")
    if kind == "judge":
        url, model, instruction = (*arguments.split("#", 2), "", "")[:3]
        if url and model:
            return ChatJudge(url, model, dimension, instruction or None, concurrency=concurrency)
    raise ValueError(f"scorer {spec!r} of {dimension} is not known. Accepted: {ACCEPTED_SPECS}")
