"""What a server knows of one user. Plain data by name of dimension; knows neither database nor model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


class UnknownUser(LookupError):
    """There is no such user, or no such question of theirs."""


Weights = Mapping[str, float]
"""Dimension -> weight; a dimension that is not named has 0."""


@dataclass(frozen=True)
class NamedChoice:
    """What one act of a user said: see choices/observed_choice.py, whose `x` it has by name."""

    x: Weights
    outcome: float
    strength: float = 1.0
    length: float | None = None


@dataclass(frozen=True)
class Profile:
    """One user at one time."""

    user: str

    user_id: int
    """Of the database; a user of the same name after a deletion has another one."""

    version: int
    """Rises with every change of what is known of the user."""

    weights: Weights
    """Of every dimension that is known; all 0 or none: requests are answered unguided."""

    intervals: Mapping[str, tuple[float, float]]
    """95% interval of each weight."""

    num_choices: int

    stated: Weights | None = None
    """What the user, or the operator for them, said they like; None: nothing."""

    num_conversations: int = 0
    """Conversations that were read; they count where nothing is stated."""


@dataclass(frozen=True)
class ProfileEvidence:
    """All that a profile's weights are made from."""

    stated: Weights | None
    choices: tuple[NamedChoice, ...] = field(default_factory=tuple)

    conversations: tuple[Weights, ...] = field(default_factory=tuple)
    """Weights that each conversation teaches: 1 is what a dimension's own instruction does. They count where
    nothing is stated.
    """


def weights_text(weights: Weights) -> str:
    """`pad_weights` of a request; empty where every weight is 0."""
    return ",".join(f"{name}={value!r}" for name, value in weights.items() if value)
