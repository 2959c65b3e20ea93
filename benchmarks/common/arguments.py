"""What the scripts' command lines share: options, and the result that is printed and written as JSON.

Knows nothing of what is measured, and imports nothing that reads the environment.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pad_vllm.steering.evaluation_prompts import JUDGE_PROMPTS, STEERING_PROMPTS

ROOT = Path(__file__).parents[2]
"""Of the checkout: where the scripts are run."""


def make_parser(
    description: str | None,
    *,
    base: str | None = "smollm2-135m",
    adapter: str | None = "demo",
    out: str | None = None,
) -> argparse.ArgumentParser:
    """A parser with --base, --adapter and --out.

    Args:
        description: The script's docstring, shown by --help.
        base: Default of --base; None leaves the option out.
        adapter: Default of --adapter; None leaves the option out.
        out: Default of --out; None makes it required.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    if base is not None:
        parser.add_argument("--base", default=base)
    if adapter is not None:
        parser.add_argument("--adapter", default=adapter)
    default = Path(out) if out else None
    parser.add_argument("--out", type=Path, required=out is None, default=default)
    return parser


def add_prompts_option(parser: argparse.ArgumentParser) -> None:
    """--prompts, for a script that has prompts answered; --steering is its older spelling."""
    parser.add_argument(
        *("--prompts", "--steering"),
        type=Path,
        default=STEERING_PROMPTS,
        help="prompts that are answered (default: 60 that ship with the package)",
    )


def add_judge_prompts_option(parser: argparse.ArgumentParser) -> None:
    """--judge-prompts, on whose answers judges are fitted."""
    parser.add_argument(
        "--judge-prompts",
        type=Path,
        default=JUDGE_PROMPTS,
        help="other prompts, for the judges (default: 40 that ship with the package)",
    )


def add_judging_options(parser: argparse.ArgumentParser, *, tokens: int) -> None:
    """What `AnswerExperiment.from_arguments` reads; tokens: default length of an answer."""
    add_prompts_option(parser)
    add_judge_prompts_option(parser)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--tokens", type=int, default=tokens)
    parser.add_argument("--dimensions", nargs="+", help="default: all of the adapter's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--kept", type=Path, help="file of drawn answers (default: beside --out)")
    parser.add_argument("--picture", type=Path)


def add_timing_options(
    parser: argparse.ArgumentParser, *, batches: Sequence[int], tokens: int, rounds: int
) -> None:
    """For a script that times steps of engines in turns.

    Args:
        parser: Gets --batches, --tokens, --prompt, --rounds and --eager.
        batches: Default batch sizes.
        tokens: Default number of timed steps.
        rounds: Default number of rounds.
    """
    parser.add_argument("--batches", type=int, nargs="+", default=list(batches))
    parser.add_argument("--tokens", type=int, default=tokens)
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--eager", action="store_true")


def name_and_value(text: str) -> tuple[str, str]:
    """The type of an argument NAME=VALUE."""
    name, _, value = text.partition("=")
    return name, value


def command_line() -> str:
    """The command that started this script, for its result."""
    script = Path(sys.argv[0]).resolve()
    if script.is_relative_to(ROOT):
        module = ".".join(script.relative_to(ROOT).with_suffix("").parts)
        return shlex.join(["python", "-m", module, *sys.argv[1:]])
    return shlex.join(["python", *sys.argv])


def print_and_write(
    args: argparse.Namespace, result: Mapping[str, Any], draw: Callable[[Path], None] | None = None
) -> None:
    """Print the result's table, draw the picture where --picture is given, and write --out.

    Args:
        args: The parsed command line.
        result: Plain JSON; "table" is a list of Markdown lines.
        draw: Draws the picture into a file; None for a script that has no --picture.
    """
    print("\n".join(result["table"]))
    if draw is not None and args.picture:
        draw(args.picture)
    write_result(args.out, result)


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
