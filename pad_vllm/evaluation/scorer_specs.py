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

from pad_vllm.adapter.manifest import DIMENSION
from pad_vllm.evaluation.chat_judge import Judge
from pad_vllm.evaluation.classifier_scorer import Classifier
from pad_vllm.evaluation.lexical_scorers import SCORERS, WHOLE

FORMS = (
    f"{', '.join(SCORERS)}; or DIMENSION= and one of those, or classifier:MODEL[#LABEL], "
    "or judge:URL#MODEL[#INSTRUCTION]"
)


class Scorer(Protocol):
    """Scores replies, higher is more of it. None is an unknown score, never a low one.

    name is the spec without the dimension; parse_scorer makes the same scorer from it again.
    whole: its score of an unfinished answer means nothing.
    """

    @property
    def name(self) -> str: ...

    @property
    def whole(self) -> bool: ...

    def __call__(self, prompts: list[str], texts: list[str]) -> list[float | None]:
        """One score a text; prompts[i] is what texts[i] answers."""


@dataclass(frozen=True)
class Local:
    """A function of scorers.py, by name, as a `Scorer`."""

    name: str

    @property
    def whole(self) -> bool:
        return self.name in WHOLE

    def __call__(self, prompts: list[str], texts: list[str]) -> list[float | None]:  # noqa: ARG002
        return [SCORERS[self.name](text) for text in texts]


def parse_scorer(spec: str, *, concurrency: int = 8) -> tuple[str, Scorer]:
    """The dimension and its scorer; a ValueError says what is accepted.

    concurrency is how many requests a judge has under way at once.
    """
    if spec in SCORERS:
        return spec, Local(spec)
    dimension, equals, rest = spec.partition("=")
    if not equals or not DIMENSION.fullmatch(dimension):
        way_out = f" Give it a dimension's name: helpful={spec}." if ":" in dimension else ""
        raise ValueError(f"scorer {spec!r} is not known.{way_out} Accepted: {FORMS}")
    return dimension, _scorer(dimension, rest, concurrency)


def _scorer(dimension: str, spec: str, concurrency: int) -> Scorer:
    if spec in SCORERS:
        return Local(spec)
    kind, _, rest = spec.partition(":")
    if kind == "classifier" and (model := rest.partition("#")[0]):
        return Classifier(model, rest.partition("#")[2] or None)
    if kind == "judge":
        url, model, instruction = (*rest.split("#", 2), "", "")[:3]
        if url and model:
            return Judge(url, model, dimension, instruction or None, concurrency=concurrency)
    raise ValueError(f"scorer {spec!r} of {dimension} is not known. Accepted: {FORMS}")
