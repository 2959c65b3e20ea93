"""What an adapter's JSON says, checked field by field; the error of all that an adapter gets wrong.

In: text, or values that were read. Out: nothing, or an AdapterError that names the field, its value, what is
accepted and the way out. Knows no format.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pad_vllm.wording import did_you_mean, listed, short_repr


class AdapterError(ValueError):
    """An adapter that is not served: where, the value, what is accepted, the way out."""


def read_json_object(file: Path, way_out: str) -> dict[str, Any]:
    if not file.is_file():
        raise AdapterError(f"{file} does not exist. {way_out}")
    try:
        return parse_json_object(file.read_text("utf-8"))
    except ValueError as error:
        raise AdapterError(f"{file}: {error}") from None


def parse_json_object(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"not valid JSON ({error}). Write or copy the file again.") from None
    require_field(isinstance(raw, dict), "the file", raw, "a JSON object")
    assert isinstance(raw, dict)
    return raw


def require_field(valid: object, name: str, value: object, accepted: str) -> None:
    if not valid:
        raise AdapterError(f"{name} is {short_repr(value)}; accepted: {accepted}. Correct it.")


def require_keys(prefix: str, raw: Mapping[str, Any], of: type) -> None:
    known = [entry.name for entry in dataclasses.fields(of)]
    missing = [name for name in known if name not in raw]
    extra = [name for name in raw if name not in known]
    if missing or extra:
        hint = did_you_mean(extra[0], missing) if extra else ""
        raise AdapterError(
            f"keys missing: {listed(prefix + name for name in missing)}; keys unknown: "
            f"{listed(prefix + name for name in extra)}.{hint} Accepted: exactly {listed(known)}. "
            "Correct the file."
        )


def require_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    accepted = (
        f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    )
    whole = isinstance(value, int) and not isinstance(value, bool)
    require_field(whole and low <= value and (high is None or value <= high), name, value, accepted)  # type: ignore[operator]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
