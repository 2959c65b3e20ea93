"""The ways in which every prompt is answered: unguided, asked for in the prompt, guided, both, and mixes.

In: an adapter's dimensions, the sentence of each that has one, strengths. Out: Conditions. Knows no engine
and no judge.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pad_vllm.adapter.manifest import AdapterConfig, training_sections


@dataclass(frozen=True)
class Condition:
    """One way to answer all prompts."""

    name: str
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of guidance; none for an answer that is not guided."""

    beta: float = 0.0
    """Of guidance."""

    instruction: str = ""
    """Put behind the prompt, as a user would ask for it; empty for none."""

    aims: Mapping[str, int] = field(default_factory=dict)
    """Dimension -> 1 for more of it, -1 for less: what it is judged by."""

    request_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments of a guided request, as `pad_min_p`; the adapter's defaults where there are none."""

    def extra_args(self) -> dict[str, Any] | None:
        """Of SamplingParams."""
        if not self.weights:
            return None
        weights = [f"{name}={value:g}" for name, value in self.weights.items()]
        return {"pad_weights": weights, "pad_beta": self.beta, **self.request_arguments}


def instructions_of(
    config: AdapterConfig, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """How a user would ask for each dimension: what taught it, of two opposites the first, or `told`.

    Raises ValueError where `told` names a dimension that the adapter does not have.
    """
    for name in given or {}:
        if name not in config.dimensions:
            raise ValueError(
                f"--told {name}: the adapter has no such dimension, only {', '.join(config.dimensions)}"
            )
    rows = [row for part in training_sections(config) for row in part.get("taught") or []]
    sentences = {row["dimension"]: row["sentences"][0] for row in rows} | dict(given or {})
    return {name: sentences[name] for name in config.dimensions if name in sentences}


def unguided_condition() -> Condition:
    """What every other condition is compared with."""
    return Condition("unguided")


def instructed_conditions(sentences: Mapping[str, str]) -> list[Condition]:
    """Plain prompting."""
    return [
        Condition(f"told {name}", instruction=sentence, aims={name: 1})
        for name, sentence in sentences.items()
    ]


def guided_conditions(
    name: str, dimensions: Sequence[str], betas: Sequence[float], signs: Sequence[int] = (1, -1)
) -> list[Condition]:
    """Each dimension alone, in each of the signs. name: of the adapter."""
    return [
        Condition(f"{name} {_sign(sign)}{d}", {d: float(sign)}, beta, aims={d: sign})
        for beta, d, sign in itertools.product(betas, dimensions, signs)
    ]


def instructed_and_guided_conditions(
    name: str, sentences: Mapping[str, str], betas: Sequence[float]
) -> list[Condition]:
    """Guidance on top of plain prompting."""
    return [
        Condition(f"told and {name} +{d}", {d: 1.0}, beta, sentence, {d: 1})
        for beta, (d, sentence) in itertools.product(betas, sentences.items())
    ]


def mixed_conditions(name: str, dimensions: Sequence[str], beta: float) -> list[Condition]:
    """Every two dimensions at once."""
    return [
        Condition(
            f"{name} +{'+'.join(pair)}", dict.fromkeys(pair, 1.0), beta, "", dict.fromkeys(pair, 1)
        )
        for pair in itertools.combinations(dimensions, 2)
    ]


def _sign(sign: int) -> str:
    return "+" if sign > 0 else "-"
