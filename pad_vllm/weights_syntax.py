"""The request argument `pad_weights`: its three spellings, and numbers in request arguments.

In: what a client sent. Out: weights by dimension name, or a ValueError that names the value, what is accepted
and the way out. params.py checks whether the adapter has these dimensions.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping

from pad_vllm.wording import refusal, short_repr

WEIGHTS_ARGUMENT = "pad_weights"
WEIGHTS_FORMS = """'helpful=1,humor=0.5', '{"helpful": 1}' or ["helpful=1", "humor=0.5"]"""
"""For messages: the spellings that are accepted."""

MAX_WEIGHTS_CHARS = 10_000
"""Characters of pad_weights in all: it is parsed in the server's event loop."""

MAX_WEIGHT = 1e4
"""Largest |weight|: keeps w, the sum of w and the rewards made from them finite in float32."""

NamedWeights = list[tuple[str, float]]
"""(dimension, weight), in the order of the request; each dimension once."""


def parse_weights(value: object) -> NamedWeights:
    """The weights that a `pad_weights` names: names stripped and unique, |weights| up to MAX_WEIGHT.

    Raises ValueError for anything else.
    """
    if _count_characters(value) > MAX_WEIGHTS_CHARS:
        raise refusal(
            WEIGHTS_ARGUMENT,
            value,
            f"at most {MAX_WEIGHTS_CHARS:,} characters",
            "name only what is not 0",
        )
    pairs = [(name.strip(), number) for name, number in _split_spelling(value)]
    if not pairs:
        raise refusal(
            WEIGHTS_ARGUMENT,
            value,
            WEIGHTS_FORMS,
            f"name at least one dimension, or leave {WEIGHTS_ARGUMENT} out",
        )
    seen: set[str] = set()
    for name, _ in pairs:
        if not name:
            raise refusal(
                WEIGHTS_ARGUMENT, value, WEIGHTS_FORMS, "put a dimension's name before every '='"
            )
        if name in seen:
            raise refusal(
                WEIGHTS_ARGUMENT,
                value,
                "each dimension once",
                f"drop one of the two {short_repr(name)}",
            )
        seen.add(name)
    return [(name, _bounded_weight(name, number)) for name, number in pairs]


def finite_number(what: str, value: object) -> float:
    """A finite number from an int, a float or text, and not from a bool. Raises ValueError for anything else.

    what: the argument's name, for the message.
    """
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    # 1_000 is Python's spelling, not a number a client would mean.
    if not math.isfinite(number) or (isinstance(value, str) and "_" in value):
        raise refusal(what, value, "a finite number", "correct the number")
    return number


def _count_characters(value: object) -> int:
    """Length of a text; for a list or an object the length of its texts, and one for every entry."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, list | tuple | Mapping):
        return 0
    if len(value) > MAX_WEIGHTS_CHARS:
        return len(value)
    return len(value) + sum(len(entry) for entry in value if isinstance(entry, str))


def _split_spelling(value: object) -> list[tuple[str, object]]:
    """(name, number) as they were written, of any of the spellings."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            return _split_json(text)
        return _split_equations(text.split(","), value) if text else []
    if isinstance(value, list | tuple):
        return _split_equations(value, value)
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return list(value.items())  # offline only: over HTTP vLLM lets no object through
    raise refusal(WEIGHTS_ARGUMENT, value, WEIGHTS_FORMS, "write the weights in one of these forms")


def _split_equations(items: Iterable[object], value: object) -> list[tuple[str, object]]:
    """Items such as `helpful=1`; value: the whole argument, for the message."""
    pairs: list[tuple[str, object]] = []
    for item in items:
        if not isinstance(item, str) or "=" not in item:
            raise refusal(
                WEIGHTS_ARGUMENT, value, WEIGHTS_FORMS, f"write {short_repr(item)} as name=number"
            )
        name, _, number = item.partition("=")
        pairs.append((name, number))
    return pairs


def _split_json(text: str) -> list[tuple[str, object]]:
    try:
        # Pairs, not a dict: json would keep the last of two equal names and report nothing.
        parsed = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise refusal(
            WEIGHTS_ARGUMENT, text, WEIGHTS_FORMS, f"correct the JSON ({reason})"
        ) from None
    return list(parsed)


def _bounded_weight(name: str, value: object) -> float:
    what = f"{WEIGHTS_ARGUMENT} for {short_repr(name)}"
    number = finite_number(what, value)
    if abs(number) > MAX_WEIGHT:
        raise refusal(
            what,
            value,
            f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, which keeps rewards finite in float32",
            "scale the weights down",
        )
    return number
