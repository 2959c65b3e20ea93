"""From what people write, `helpful=judge:http://localhost:8000/v1#my-model`, to a scorer of batches.

    NAME                                          a local scorer of scorers.py, its name the dimension
    DIMENSION=NAME                                the same under another name
    DIMENSION=classifier:MODEL[#LABEL]            a Transformers sequence classifier, classifier.py
    DIMENSION=judge:URL#MODEL[#INSTRUCTION]       a chat model behind an OpenAI-compatible API, judge.py

Loads no model and asks no server: a scorer does that when it is first called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pad_vllm.adapter.manifest import DIMENSION_NAME
from pad_vllm.evaluation.chat_judge import ChatJudge
from pad_vllm.evaluation.classifier_scorer import ClassifierScorer
from pad_vllm.evaluation.lexical_scorers import COMPLETE_ONLY, LEXICAL_SCORERS

ACCEPTED_SPECS = (
    f"{', '.join(LEXICAL_SCORERS)}; or DIMENSION= and one of those, or classifier:MODEL[#LABEL], "
    "or judge:URL#MODEL[#INSTRUCTION]"
)


class BatchScorer(Protocol):
    """Scores replies, higher is more of it. None is an unknown score, never a low one.

    name is the spec without the dimension; parse_scorer makes the same scorer from it again.
    whole: its score of an unfinished answer means nothing.
    """

    @property
    def name(self) -> str: ...

    @property
    def complete_only(self) -> bool: ...

    def __call__(self, prompts: list[str], texts: list[str]) -> list[float | None]:
        """One score a text; prompts[i] is what texts[i] answers."""


@dataclass(frozen=True)
class LexicalScorer:
    """A function of scorers.py, by name, as a `Scorer`."""

    name: str

    @property
    def complete_only(self) -> bool:
        return self.name in COMPLETE_ONLY

    def __call__(self, prompts: list[str], texts: list[str]) -> list[float | None]:  # noqa: ARG002
        return [LEXICAL_SCORERS[self.name](text) for text in texts]


def parse_scorer(spec: str, *, concurrency: int = 8) -> tuple[str, BatchScorer]:
    """The dimension and its scorer; a ValueError says what is accepted.

    concurrency is how many requests a judge has under way at once.
    """
    if spec in LEXICAL_SCORERS:
        return spec, LexicalScorer(spec)
    dimension, equals, rest = spec.partition("=")
    if not equals or not DIMENSION_NAME.fullmatch(dimension):
        way_out = f" Give it a dimension's name: helpful={spec}." if ":" in dimension else ""
        raise ValueError(f"scorer {spec!r} is not known.{way_out} Accepted: {ACCEPTED_SPECS}")
    return dimension, _scorer(dimension, rest, concurrency)


def _scorer(dimension: str, spec: str, concurrency: int) -> BatchScorer:
    if spec in LEXICAL_SCORERS:
        return LexicalScorer(spec)
    kind, _, rest = spec.partition(":")
    if kind == "classifier" and (model := rest.partition("#")[0]):
        return ClassifierScorer(model, rest.partition("#")[2] or None)
    if kind == "judge":
        url, model, instruction = (*rest.split("#", 2), "", "")[:3]
        if url and model:
            return ChatJudge(url, model, dimension, instruction or None, concurrency=concurrency)
    raise ValueError(f"scorer {spec!r} of {dimension} is not known. Accepted: {ACCEPTED_SPECS}")
