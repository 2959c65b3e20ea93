"""The command line of `vllm serve` with PAD switched on.

In: a base model, an adapter and whatever flags the user has for vLLM. Out: arguments for vLLM, with
PAD's three flags merged into the user's own. Starts nothing, and imports neither torch nor vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from pad_vllm.config import LOGITS_PROCESSOR, PAD_KEY, PADConfig


class FlagOccurrence(NamedTuple):
    """One occurrence of a flag. `path` is empty but for vLLM's dotted form, `--name.a.b VALUE`."""

    path: tuple[str, ...]
    values: list[str]


def serve_argv(
    base: str,
    adapter: str,
    user_flags: Iterable[str] = (),
    *,
    load_format: str | None = None,
    allow_backbone_mismatch: bool = False,
    served_name: str | None = None,
    engine: str | None = None,
) -> list[str]:
    """What follows `vllm` on the command line: `serve BASE`, PAD's flags, then the rest of `extra`.

    `load_format` is how the weights are read underneath PAD; `served_name` is used unless `extra`
    has its own. Raises ValueError: a flag in `extra` contradicts PAD or cannot be read.
    """
    formats, rest = _take(list(user_flags), "--load-format")
    processors, rest = _take(rest, "--logits-processors", many=True)
    configs, rest = _take(rest, "--additional-config")
    _refuse_other_formats(formats)
    pad: dict[str, Any] = {"adapter": adapter}
    if engine is not None:
        pad["engine"] = engine
    if load_format is not None:
        pad["load_format"] = load_format
    if allow_backbone_mismatch:
        pad["allow_backbone_mismatch"] = True
    argv = ["serve", base, "--load-format", "pad"]
    argv += ["--logits-processors", *_with_pad(processors)]
    argv += ["--additional-config", json.dumps(_merged(configs, pad), sort_keys=True)]
    if served_name is not None and not _take(rest, "--served-model-name")[0]:
        argv += ["--served-model-name", served_name]
    return argv + rest


def _take(
    args: list[str], name: str, *, many: bool = False
) -> tuple[list[FlagOccurrence], list[str]]:
    """Split `args` into the occurrences of one flag, in every spelling of vLLM's, and the rest.

    `many`: the flag swallows all values up to the next flag, as argparse's nargs="+" does.
    """
    taken: list[FlagOccurrence] = []
    rest: list[str] = []
    position = 0
    while position < len(args):
        option, equals, value = args[position].partition("=")
        head, *path = option.split(".")
        position += 1
        if not _means(head.replace("_", "-"), name):
            rest.append(args[position - 1])
            continue
        values = [value] if equals else []
        while not equals and position < len(args) and (many or not values):
            if args[position].startswith("-"):
                break
            values.append(args[position])
            position += 1
        if not values:
            raise ValueError(f"{option} has no value. Accepted: {option} VALUE or {option}=VALUE")
        taken.append(FlagOccurrence(tuple(path), values))
    return taken, rest


def _means(option: str, name: str) -> bool:
    """As in argparse, a flag cut short, such as --load-form, stands for the whole."""
    first_word = "--" + name.removeprefix("--").partition("-")[0]
    return name.startswith(option) and option.startswith(first_word)


def _refuse_other_formats(formats: list[FlagOccurrence]) -> None:
    for flag in formats:
        if flag.values != ["pad"]:
            value = flag.values[0]
            raise ValueError(
                f"--load-format {value}: PAD needs this flag for itself (it is always `pad` here). "
                f"To read the base's weights as {value}, say --pad-load-format {value}"
            )


def _with_pad(processors: list[FlagOccurrence]) -> list[str]:
    """PAD's processor once, then the user's: vLLM keeps only the last of two such flags."""
    own = [value for flag in processors for value in flag.values]
    return [LOGITS_PROCESSOR, *(value for value in own if value != LOGITS_PROCESSOR)]


def _merged(configs: list[FlagOccurrence], pad: dict[str, Any]) -> dict[str, Any]:
    """The user's additional config with PAD's section in it, checked as the engine would."""
    merged: dict[str, Any] = {}
    for flag in configs:
        _overlay(merged, _parsed(flag), "--additional-config")
    _overlay(merged, {PAD_KEY: pad}, "the flags of pad-vllm serve")
    PADConfig.from_additional_config(merged)
    return merged


def _parsed(flag: FlagOccurrence) -> dict[str, Any]:
    """`--additional-config JSON` and `--additional-config.a.b VALUE` alike as one mapping."""
    text = flag.values[0]
    value: Any
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    for key in reversed(flag.path):
        value = {key: value}
    if not isinstance(value, dict):
        raise ValueError(
            f"--additional-config {text}: not a JSON object. "
            """Accepted: '{"pad": {"max_beta": 5}}' or --additional-config.pad.max_beta 5"""
        )
    return value


def _overlay(below: dict[str, Any], above: dict[str, Any], where: str, path: str = "") -> None:
    """Put `above` into `below`, key by key; two values for one key are an error, not a choice."""
    for key, value in above.items():
        name = f"{path}{key}"
        present = below.setdefault(key, value)
        if isinstance(present, dict) and isinstance(value, dict):
            if present is not value:
                _overlay(present, value, where, f"{name}.")
        elif present != value:
            raise ValueError(
                f"{name} is given twice: {present!r}, and {value!r} by {where}. Keep one of them"
            )
