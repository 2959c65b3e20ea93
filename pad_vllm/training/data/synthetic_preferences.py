"""Synthetic users: preference weights to train and to test on (the paper's synthetic preferences).

Out: w [N, D]; the same in words, and a prompt that carries the words as the paper's code has it; how far a
preference lies from those that were trained. Knows nothing of data files or models.
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
    """Half single dimensions, a quarter Dirichlet mixes, a quarter signed mixes: w [count, D].

    One in three of the single ones is negative. Rows have a largest |w| of 1.
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
    """`draw` over the dimensions a prompt has scores for, 0 on the others: known [D] -> [count, D]."""
    places = known.nonzero().flatten()
    if not len(places):
        raise ValueError(
            f"none of the {len(known)} dimensions is known for this prompt; accepted: at least "
            "one. Leave the prompt out, or score its responses."
        )
    drawn = draw_preferences(count, len(places), generator)
    return torch.zeros(count, len(known)).index_copy_(1, places, drawn)


@dataclass(frozen=True)
class _Wording:
    """One way to say a preference; {} is the dimension's adjective, or in frame the whole."""

    frame: str
    strong: str
    weak: str
    never: str
    rather_not: str
    but: str
    plain: str = "{}"
    no: str = "not {}"


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
"""Paraphrases: `describe` says the same weights in each of them."""


def describe_weights(w: Mapping[str, float], *, wording: int = 0) -> str:
    """Weights by dimension in words: "harmless and very helpful but not humorous".

    Weights under a tenth of the largest are left out; degrees are stated only where they differ.
    wording: which of WORDINGS.
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
    say = WORDINGS[wording]
    parts = {name: value / top for name, value in w.items() if abs(value) >= 0.1 * top}
    level = all(abs(part) > 2 / 3 for part in parts.values())
    wanted = [
        _said(say.strong, say.plain, say.weak, name, 0.5 if level else part)
        for name, part in parts.items()
        if part > 0
    ]
    unwanted = [
        _said(say.never, say.no, say.rather_not, name, 0.5 if level else -part)
        for name, part in parts.items()
        if part < 0
    ]
    joined = [_and(side) for side in (wanted, unwanted) if side]
    return say.frame.format(say.but.join(joined))


def _said(strong: str, plain: str, weak: str, name: str, part: float) -> str:
    """A dimension with its degree: part of the largest weight, 0 to 1."""
    form = strong if part > 2 / 3 else plain if part > 1 / 3 else weak
    return form.format(ADJECTIVES.get(name, name.replace("_", " ")))


def _and(parts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def angle_to_nearest(w: Tensor, trained: Tensor) -> float:
    """Degrees, 0 to 180, from preference w [D] to the nearest direction of trained [M, D]."""
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
