"""The command line of `vllm serve` with PAD switched on.

In: a base model, an adapter and whatever flags the user has for vLLM. Out: arguments for vLLM, with
PAD's three flags merged into the user's own. Starts nothing, and imports neither torch nor vLLM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pad_vllm.config import LOAD_FORMAT, LOGITS_PROCESSOR, PAD_KEY, PADConfig

_PARALLEL_FLAGS = (
    *("--tensor-parallel-size", "-tp"),
    *("--pipeline-parallel-size", "-pp"),
    *("--data-parallel-size", "-dp"),
)
"""By which vLLM is asked for several workers, whole and short."""


class FlagOccurrence(NamedTuple):
    """One occurrence of a flag on the command line."""

    path: tuple[str, ...]
    """Keys of vLLM's dotted form, `--name.a.b VALUE`; empty for the plain form."""

    values: list[str]


def serve_argv(
    base: str,
    adapter: str | None,
    user_flags: Iterable[str] = (),
    *,
    load_format: str | None = None,
    allow_backbone_mismatch: bool = False,
    served_name: str | None = None,
    engine: str | None = None,
    instructions: bool = False,
    fork_layer: int | None = None,
    profiles: str | None = None,
    unknown_user: str | None = None,
    profile_prior: str | None = None,
    profile_reader: str | None = None,
    learn_from_conversations: bool = False,
    profile_tokens: str | None = None,
    defaults: Mapping[str, str] | None = None,
) -> list[str]:
    """What follows `vllm` on the command line: `serve BASE`, PAD's flags, then the user's other flags.

    Args:
        base: folder or hub name of the model.
        adapter: folder of the adapter; None for a server that only takes instructions.
        user_flags: the user's flags for vLLM; those that PAD needs too are merged.
        load_format: how vLLM reads the base's weights, what --load-format would say without PAD.
        allow_backbone_mismatch: that setting of PAD.
        served_name: name of the model for clients, unless the user's flags have one.
        engine: that setting of PAD.
        instructions: that setting of PAD.
        fork_layer: that setting of PAD.
        profiles: that setting of PAD.
        unknown_user: that setting of PAD.
        profile_prior: that setting of PAD.
        profile_reader: that setting of PAD.
        learn_from_conversations: that setting of PAD.
        profile_tokens: that setting of PAD.
        defaults: flag of vLLM's -> value, for flags that the user's do not have.

    Raises:
        ValueError: a flag of the user contradicts PAD or cannot be read.
    """
    load_formats, others = _split_off(list(user_flags), "--load-format")
    processors, others = _split_off(others, "--logits-processors", many=True)
    configs, others = _split_off(others, "--additional-config")
    _refuse_other_load_formats(load_formats)
    given: dict[str, Any] = {
        "adapter": adapter,
        "engine": engine,
        "load_format": load_format,
        "fork_layer": fork_layer,
        "allow_backbone_mismatch": allow_backbone_mismatch or None,
        "instructions": instructions or None,
        "profiles": profiles,
        "unknown_user": unknown_user,
        "profile_prior": profile_prior,
        "profile_reader": profile_reader,
        "learn_from_conversations": learn_from_conversations or None,
        "profile_tokens": profile_tokens,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    argv = ["serve", base, "--load-format", LOAD_FORMAT]
    argv += ["--logits-processors", *_with_pad_processor(processors)]
    argv += ["--additional-config", json.dumps(_merged_config(configs, settings), sort_keys=True)]
    if served_name is not None and not has_flag(others, "--served-model-name"):
        argv += ["--served-model-name", served_name]
    for flag, value in (defaults or {}).items():
        if not has_flag(others, flag):
            argv += [flag, value]
    return argv + others


def has_flag(user_flags: Iterable[str], name: str) -> bool:
    """Whether the user's flags have this one, in any of vLLM's spellings."""
    return bool(_split_off(list(user_flags), name)[0])


def flag_value(user_flags: Iterable[str], name: str) -> str | None:
    """The value of this flag among the user's, the last one where it is given twice; None without it."""
    occurrences = _split_off(list(user_flags), name)[0]
    return occurrences[-1].values[-1] if occurrences else None


def num_ranks(user_flags: Iterable[str]) -> int:
    """How many workers the user's flags ask for; a number that cannot be read counts as one."""
    flags = list(user_flags)
    found = [flag for name in _PARALLEL_FLAGS for flag in _split_off(flags, name)[0]]
    return math.prod(max(int(f.values[0]), 1) for f in found if f.values[0].isdigit())


def _split_off(
    args: list[str], name: str, *, many: bool = False
) -> tuple[list[FlagOccurrence], list[str]]:
    """Split `args` into the occurrences of one flag, in every spelling of vLLM's, and all others.

    `many`: the flag takes all values up to the next flag, as argparse's nargs="+" does.
    """
    occurrences: list[FlagOccurrence] = []
    others: list[str] = []
    position = 0
    while position < len(args):
        option, equals, value = args[position].partition("=")
        head, *path = option.split(".")
        position += 1
        if not _abbreviates(head.replace("_", "-"), name):
            others.append(args[position - 1])
            continue
        values = [value] if equals else []
        while not equals and position < len(args) and (many or not values):
            if args[position].startswith("-"):
                break
            values.append(args[position])
            position += 1
        if not values:
            raise ValueError(f"{option} has no value. Accepted: {option} VALUE or {option}=VALUE")
        occurrences.append(FlagOccurrence(tuple(path), values))
    return occurrences, others


def _abbreviates(option: str, name: str) -> bool:
    """Whether argparse reads the option as this flag: whole, or cut short, such as --load-form. Short ones,
    such as -tp, are not cut.
    """
    if not name.startswith("--"):
        return option == name
    first_word = "--" + name.removeprefix("--").partition("-")[0]
    return name.startswith(option) and option.startswith(first_word)


def _refuse_other_load_formats(occurrences: list[FlagOccurrence]) -> None:
    for flag in occurrences:
        if flag.values != [LOAD_FORMAT]:
            value = flag.values[0]
            raise ValueError(
                f"--load-format {value}: PAD needs this flag for itself (it is always `pad` here). "
                f"To read the base's weights as {value}, say --pad-load-format {value}"
            )


def _with_pad_processor(occurrences: list[FlagOccurrence]) -> list[str]:
    """PAD's processor once, then the user's, in one flag: vLLM keeps only the last of two such flags."""
    processors = [value for flag in occurrences for value in flag.values]
    return [LOGITS_PROCESSOR, *(name for name in processors if name != LOGITS_PROCESSOR)]


def _merged_config(configs: list[FlagOccurrence], settings: dict[str, Any]) -> dict[str, Any]:
    """The user's additional config with PAD's settings in it, checked as the engine would."""
    merged: dict[str, Any] = {}
    for flag in configs:
        _merge_into(merged, _parsed_config(flag), "--additional-config")
    _merge_into(merged, {PAD_KEY: settings}, "the flags of pad-vllm serve")
    PADConfig.from_additional_config(merged)
    return merged


def _parsed_config(flag: FlagOccurrence) -> dict[str, Any]:
    """The mapping that `--additional-config JSON` or `--additional-config.a.b VALUE` stands for."""
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


def _merge_into(target: dict[str, Any], added: dict[str, Any], origin: str, path: str = "") -> None:
    """Put `added` into `target`, key by key. Raises ValueError where a key has two different values.

    origin: where `added` comes from, and path: the keys above it, for the message.
    """
    for key, value in added.items():
        name = f"{path}{key}"
        present = target.setdefault(key, value)
        if isinstance(present, dict) and isinstance(value, dict):
            if present is not value:
                _merge_into(present, value, origin, f"{name}.")
        elif present != value:
            raise ValueError(
                f"{name} is given twice: {present!r}, and {value!r} by {origin}. Keep one of them"
            )
