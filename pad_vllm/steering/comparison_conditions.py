"""Conditions of a comparison: the ways in which every prompt is answered.

Unguided, instructed (the instruction stands in the prompt), guided, instructed and guided, and mixes of two
dimensions. In: an adapter's dimensions, the instruction of each dimension that has one, strengths. Out:
Conditions. This module knows no engine and no judge.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pad_vllm.adapter.manifest import AdapterConfig, PrefixConfig, taught_sentences
from pad_vllm.request_limits import LEARNED_PREFIX_BETA


@dataclass(frozen=True)
class Condition:
    """One way to answer all prompts. Its name stands in result files and tables."""

    name: str
    weights: Mapping[str, float] = field(default_factory=dict)
    """Dimension -> weight of guidance; empty for an unguided answer."""

    beta: float = 0.0
    """Strength of guidance."""

    instruction: str = ""
    """Sentence put after the prompt, as a user would ask for a dimension; empty for none."""

    aims: Mapping[str, int] = field(default_factory=dict)
    """Dimension -> 1 for more of it, -1 for less: what the answers are judged by."""

    request_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Other arguments of a guided request, such as pad_min_p; missing ones have the adapter's defaults."""

    def extra_args(self) -> dict[str, Any] | None:
        """`extra_args` of SamplingParams for a guided condition; None for an unguided one."""
        if not self.weights:
            return dict(self.request_arguments) or None
        weights = [f"{name}={value:g}" for name, value in self.weights.items()]
        return {"pad_weights": weights, "pad_beta": self.beta, **self.request_arguments}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON that identifies the condition in files of answers, whose keys do not change."""
        return {
            "name": self.name,
            "weights": dict(self.weights),
            "beta": self.beta,
            "sentence": self.instruction,
            "aims": dict(self.aims),
            "more": dict(self.request_arguments),
        }


def instructions_of(
    config: AdapterConfig, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The instruction of each dimension that has one: how a user would ask for it in the prompt.

    Args:
        config: Adapter. Dimensions that it was trained on by an instruction have that one; of two opposite
            instructions the first.
        given: Dimension -> instruction, for other dimensions or in place of the adapter's.

    Returns:
        Dimension -> instruction, in the adapter's order of dimensions.

    Raises:
        ValueError: `given` names a dimension that the adapter does not have.
    """
    for name in given or {}:
        if name not in config.dimensions:
            raise ValueError(
                f"--told {name}: the adapter has no such dimension, only {', '.join(config.dimensions)}"
            )
    instructions = taught_sentences(config) | dict(given or {})
    return {name: instructions[name] for name in config.dimensions if name in instructions}


def unguided_condition() -> Condition:
    """The plain base. All other conditions are compared with it."""
    return Condition("unguided")


def instructed_conditions(instructions: Mapping[str, str]) -> list[Condition]:
    """Plain prompting: each dimension by its instruction in the prompt, without guidance."""
    return [
        Condition(f"told {name}", instruction=instruction, aims={name: 1})
        for name, instruction in instructions.items()
    ]


def guided_conditions(
    name: str, dimensions: Sequence[str], betas: Sequence[float], signs: Sequence[int] = (1, -1)
) -> list[Condition]:
    """Guidance by each dimension alone.

    Args:
        name: Name of the adapter or method, first word of the conditions' names.
        dimensions: Dimensions to guide by.
        betas: Strengths; each gives conditions of its own.
        signs: 1 for more of a dimension, -1 for less.

    Returns:
        A condition per strength, dimension and sign, in that order.
    """
    return [
        Condition(f"{name} {_sign(sign)}{d}", {d: float(sign)}, beta, aims={d: sign})
        for beta, d, sign in itertools.product(betas, dimensions, signs)
    ]


def instructed_and_guided_conditions(
    name: str, instructions: Mapping[str, str], betas: Sequence[float]
) -> list[Condition]:
    """Guidance by each dimension together with its instruction in the prompt.

    Args:
        name: Name of the adapter.
        instructions: Dimension -> instruction.
        betas: Strengths; each gives conditions of its own.

    Returns:
        A condition per strength and dimension, in that order.
    """
    return [
        Condition(
            f"told and {name} +{d}",
            weights={d: 1.0},
            beta=beta,
            instruction=instruction,
            aims={d: 1},
        )
        for beta, (d, instruction) in itertools.product(betas, instructions.items())
    ]


def prefix_conditions(
    prefixes: PrefixConfig, dimensions: Sequence[str], betas: Sequence[float]
) -> list[Condition]:
    """Guidance by each learned prefix.

    Args:
        prefixes: The adapter's.
        dimensions: Those that may be judged: a prefix is judged as the dimension of its name.
        betas: Strengths; each gives conditions of its own. Empty: each prefix's default.

    Returns:
        A condition per strength, prefix and sign, in that order.
    """
    names = [name for name in prefixes.digests if name in dimensions]
    strengths = [dict.fromkeys(names, beta) for beta in betas] or [
        {name: prefixes.betas.get(name, LEARNED_PREFIX_BETA) for name in names}
    ]
    return [
        Condition(
            f"prefix {_sign(sign)}{name}",
            beta=by_name[name],
            aims={name: sign},
            request_arguments={"pad_preference": name, "pad_beta": sign * by_name[name]},
        )
        for by_name, name, sign in itertools.product(strengths, names, (1, -1))
    ]


def mixed_conditions(name: str, dimensions: Sequence[str], beta: float) -> list[Condition]:
    """Guidance by every two dimensions at once, with weight 1 each.

    Args:
        name: Name of the adapter.
        dimensions: Dimensions to combine.
        beta: Strength.

    Returns:
        A condition per pair of dimensions.
    """
    return [
        Condition(
            f"{name} +{'+'.join(pair)}",
            weights=dict.fromkeys(pair, 1.0),
            beta=beta,
            aims=dict.fromkeys(pair, 1),
        )
        for pair in itertools.combinations(dimensions, 2)
    ]


def _sign(sign: int) -> str:
    return "+" if sign > 0 else "-"
