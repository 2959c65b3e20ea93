"""Synthetic users: preference weights to train and to test on (the paper's synthetic preferences).

Out: w [N, D]; the same weights in words; the angle between a preference and those that were trained. Knows
nothing of data files or models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pad_vllm.wording import short_repr

ADJECTIVES = {
    "creativity": "creative",
    "harmlessness": "harmless",
    "helpfulness": "helpful",
    "humor": "humorous",
}
"""Adjectives of dimensions; another dimension's is its name, with spaces for underscores."""


def draw_preferences(count: int, dimensions: int, generator: torch.Generator) -> Tensor:
    """Random weights: half single dimensions, a quarter Dirichlet mixes, a quarter signed mixes.

    Args:
        count: number of preferences.
        dimensions: number D of dimensions.
        generator: on the CPU.

    Returns:
        w [count, D] float32. The largest |w| of each row is 1. One in three of the single ones is negative.
    """
    kind = torch.rand(count, generator=generator)
    single = torch.nn.functional.one_hot(
        torch.randint(dimensions, (count,), generator=generator), dimensions
    ).float()
    sign = 1 - 2 * (torch.rand(count, 1, generator=generator) < 1 / 3).float()
    mix = -torch.rand(count, dimensions, generator=generator).log()
    flips = 1 - 2 * (torch.rand(count, dimensions, generator=generator) < 0.5).float()
    w = torch.where((kind < 0.5)[:, None], single * sign, mix)
    w = torch.where((kind >= 0.75)[:, None], mix * flips, w)
    return w / w.abs().amax(-1, keepdim=True)


def draw_for_known(known: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`draw_preferences` over the dimensions that a prompt has scores for, 0 on the others.

    Args:
        known: [D] bool, which dimensions the prompt has scores for.
        count: number of preferences.
        generator: on the CPU.

    Returns:
        w [count, D] float32.

    Raises:
        ValueError: no dimension is known.
    """
    indices = known.nonzero().flatten()
    if not len(indices):
        raise ValueError(
            f"none of the {len(known)} dimensions is known for this prompt; accepted: at least "
            "one. Leave the prompt out, or score its responses."
        )
    w = draw_preferences(count, len(indices), generator)
    return torch.zeros(count, len(known)).index_copy_(1, indices, w)


@dataclass(frozen=True)
class _Wording:
    """One way to state a preference. {} is the dimension's adjective; in `frame`, the whole list."""

    frame: str
    strong: str
    weak: str
    strong_negative: str
    weak_negative: str
    but: str
    """Between the wanted and the unwanted dimensions."""

    plain: str = "{}"
    plain_negative: str = "not {}"


WORDINGS = (
    _Wording("{}", "very {}", "slightly {}", "not at all {}", "not too {}", " but "),
    _Wording(
        "The response should be {}.",
        "extremely {}",
        "a little {}",
        "in no way {}",
        "not overly {}",
        ", yet ",
    ),
    _Wording(
        "I like answers that are {}.",
        "really {}",
        "somewhat {}",
        "anything but {}",
        "not especially {}",
        ", and ",
    ),
    _Wording(
        "Whoever asks wants a reply which is {}.",
        "above all {}",
        "to some extent {}",
        "never {}",
        "hardly {}",
        "; at the same time ",
    ),
)
"""Paraphrases: `describe_weights` states the same weights in each of them."""


def describe_weights(w: Mapping[str, float], *, wording: int = 0) -> str:
    """Weights in words: "harmless and very helpful but not humorous".

    Weights under a tenth of the largest are left out; degrees are stated only if they differ.

    Args:
        w: dimension -> weight.
        wording: index into WORDINGS.

    Returns:
        The words.

    Raises:
        ValueError: no such wording, or weights that are all 0 or not finite.
    """
    if not 0 <= wording < len(WORDINGS):
        raise ValueError(
            f"wording is {wording}; accepted: 0 to {len(WORDINGS) - 1}. Choose one of them."
        )
    top = max(map(abs, w.values()), default=0.0)
    if not 0 < top < math.inf or any(map(math.isnan, w.values())):
        raise ValueError(
            f"weights {short_repr(dict(w))} say nothing; accepted: finite numbers, one of them not 0. "
            "Leave the text out where there is no preference."
        )
    words = WORDINGS[wording]
    parts = {name: value / top for name, value in w.items() if abs(value) >= 0.1 * top}
    all_strong = all(abs(part) > 2 / 3 for part in parts.values())
    wanted = [
        _with_degree(words.strong, words.plain, words.weak, name, 0.5 if all_strong else part)
        for name, part in parts.items()
        if part > 0
    ]
    unwanted = [
        _with_degree(
            words.strong_negative,
            words.plain_negative,
            words.weak_negative,
            name,
            0.5 if all_strong else -part,
        )
        for name, part in parts.items()
        if part < 0
    ]
    sides = [_join_with_and(side) for side in (wanted, unwanted) if side]
    return words.frame.format(words.but.join(sides))


def _with_degree(strong: str, plain: str, weak: str, name: str, part: float) -> str:
    """The adjective of dimension `name` with its degree. part: of the largest weight, 0 to 1."""
    form = strong if part > 2 / 3 else plain if part > 1 / 3 else weak
    return form.format(ADJECTIVES.get(name, name.replace("_", " ")))


def _join_with_and(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def angle_to_nearest(w: Tensor, trained: Tensor) -> float:
    """Degrees, 0 to 180, from preference w [D] to the nearest of the directions trained [M, D].

    Raises ValueError if M is 0 or a vector is all zeros.
    """
    if not len(trained) or not w.any() or not trained.any(-1).all():
        raise ValueError(
            f"no angle from {short_repr(w.tolist())} to {len(trained)} trained preferences; accepted: "
            "vectors that are not all 0, at least one of them trained. Leave the others out."
        )
    direction = torch.nn.functional.normalize(w.double(), dim=-1)
    others = torch.nn.functional.normalize(trained.double(), dim=-1)
    # atan2 is exact near 0, where acos is off by 1e-6 degrees.
    half = torch.atan2((direction - others).norm(dim=-1), (direction + others).norm(dim=-1))
    return float(torch.rad2deg(2 * half).min())
