"""What the benchmarks' command lines have in common: arguments, prompts to read, the report to write.

Says nothing of what is measured, and imports nothing that reads the environment.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def parser(
    description: str | None,
    *,
    base: str | None = "smollm2-135m",
    adapter: str | None = "demo",
    out: str | None = None,
) -> argparse.ArgumentParser:
    """--base, --adapter and --out with these defaults; without --base or --adapter where None.

    out: None makes --out required.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    if base is not None:
        made.add_argument("--base", default=base)
    if adapter is not None:
        made.add_argument("--adapter", default=adapter)
    made.add_argument("--out", type=Path, required=out is None, default=Path(out) if out else None)
    return made


def add_answers(
    made: argparse.ArgumentParser, *, top_k: int | None, betas: Sequence[float]
) -> None:
    """Of a script that has every prompt answered under several strengths."""
    made.add_argument("--prompts", type=Path, required=True, help='JSON: [{"prompt": text}, ...]')
    made.add_argument("--betas", type=float, nargs="+", default=list(betas))
    shown = "default: the adapter's" if top_k is None else None
    made.add_argument("--top-k", type=int, default=top_k, help=shown)
    made.add_argument("--max-tokens", type=int, default=100)
    made.add_argument("--texts", type=Path, help="also write every answer here")


def add_question(made: argparse.ArgumentParser, *, tokens: int) -> None:
    """Of a script that asks a question of answers, judged by who trained nothing."""
    made.add_argument("--steering", type=Path, required=True, help="prompts that are answered")
    made.add_argument("--judge-prompts", type=Path, required=True, help="others, for the judges")
    made.add_argument("--temperature", type=float, default=0.7)
    made.add_argument("--tokens", type=int, default=tokens)
    made.add_argument("--dimensions", nargs="+", help="default: all of the adapter's")
    made.add_argument("--kept", type=Path, help="file of answers (default: beside --out)")
    made.add_argument("--picture", type=Path)


def add_timing(
    made: argparse.ArgumentParser, *, batches: Sequence[int], tokens: int, rounds: int
) -> None:
    """Of a script that times steps of engines that take turns."""
    made.add_argument("--batches", type=int, nargs="+", default=list(batches))
    made.add_argument("--tokens", type=int, default=tokens)
    made.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--eager", action="store_true")


def pair(text: str) -> tuple[str, str]:
    """The type of an argument NAME=VALUE."""
    name, _, value = text.partition("=")
    return name, value


def read_prompts(path: Path) -> list[str]:
    """The texts of a list of {"prompt": text}."""
    return [record["prompt"] for record in json.loads(path.read_text("utf-8"))]


def command() -> str:
    """The command line that started this script, for its report."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def tell(
    args: argparse.Namespace, result: Mapping[str, Any], draw: Callable[[Path], None] | None = None
) -> None:
    """Print the result's table, draw its picture where --picture asks for one, and write it to --out."""
    print("\n".join(result["table"]))
    if draw is not None and args.picture:
        draw(args.picture)
    report(args.out, result)


def report(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
