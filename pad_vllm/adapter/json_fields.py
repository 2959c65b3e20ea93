"""Checks of the JSON in an adapter folder, field by field, and the error that every faulty adapter raises.

In: text, or values that were read from JSON. Out: nothing, or an AdapterError that names the field, its
value, what is accepted and what to do. This module knows no particular format.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from pad_vllm.wording import did_you_mean, first_listed, listed, short_repr

MAX_JSON_BYTES = 16 << 20
"""Of a file that is read: an adapter's are some 10 KiB, a model's config.json less than 1 MiB."""


class AdapterError(ValueError):
    """An adapter that cannot be used. The message names the file or field, its value and what to do."""


def read_json_object(file: Path, way_out: str) -> dict[str, Any]:
    """The JSON object in `file`. Raises AdapterError; way_out: what to do where the file is missing."""
    if not file.is_file():
        raise AdapterError(f"{file} does not exist. {way_out}")
    try:
        return parse_json_object(read_json_text(file))
    except ValueError as error:
        raise AdapterError(f"{file}: {error}") from None


def read_json_text(file: Path) -> str:
    """The text of an existing file. Raises AdapterError where it is too large to be one that we read, and
    UnicodeDecodeError, a ValueError, where it is no UTF-8.
    """
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise AdapterError(f"it has {size} bytes; accepted: at most {MAX_JSON_BYTES}. Shorten it.")
    return file.read_text("utf-8")


def parse_json_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`. Raises AdapterError for invalid JSON and for any other JSON value."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"not valid JSON ({error}). Write or copy the file again.") from None
    require_field(isinstance(raw, dict), "the file", raw, "a JSON object")
    assert isinstance(raw, dict)
    return raw


def require_field(valid: object, name: str, value: object, accepted: str) -> None:
    """Raises AdapterError unless `valid` is true.

    Args:
        valid: Result of the check; only its truth value counts.
        name: Field as the user finds it in the file, such as "backbone.name".
        value: Value of the field, shown in the message.
        accepted: Description of accepted values, shown in the message.

    Raises:
        AdapterError: `valid` is false.
    """
    if not valid:
        raise AdapterError(f"{name} is {short_repr(value)}; accepted: {accepted}. Correct it.")


def require_keys(prefix: str, raw: Mapping[str, Any], accepted: Sequence[str]) -> None:
    """Raises AdapterError unless `raw` has exactly the accepted keys.

    Args:
        prefix: Path of the object in the file, such as "backbone.", put before each key in the message.
        raw: JSON object.
        accepted: All keys that the object must have.

    Raises:
        AdapterError: A key is missing or unknown. The message lists both kinds.
    """
    missing = [name for name in accepted if name not in raw]
    extra = [name for name in raw if name not in accepted]
    if missing or extra:
        hint = did_you_mean(extra[0], missing) if extra else ""
        raise AdapterError(
            f"keys missing: {listed(prefix + name for name in missing)}; keys unknown: "
            f"{first_listed([prefix + name for name in extra])}.{hint} Accepted: exactly {listed(accepted)}. "
            "Correct the file."
        )


def require_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises AdapterError unless `value` is an integer from low to high.

    Args:
        name: Field as the user finds it in the file.
        value: Value of the field. Booleans are not integers here.
        low: Smallest accepted value.
        high: Largest accepted value; None for no limit.

    Raises:
        AdapterError: `value` has another type or lies outside the range.
    """
    accepted = (
        f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    )
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    in_range = is_integer and low <= value and (high is None or value <= high)  # type: ignore[operator]
    require_field(in_range, name, value, accepted)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a JSON value is a number. Booleans are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_tuple(value: object) -> object:
    """A JSON list as a tuple; any other value unchanged."""
    return tuple(value) if isinstance(value, list) else value
