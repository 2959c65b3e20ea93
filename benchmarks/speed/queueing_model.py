"""How many users does a server have time for? A small queueing model over step times that were measured.

    python -m benchmarks.speed.queueing_model benchmarks/results/speed.json --out simulate.json

N users, each with a preference of their own, wait --think seconds, ask, and read an answer of --tokens. A
replica runs up to --rows answers at once, a step for a token of each; the others wait. How many requests are
open is a birth-death chain, solved exactly. Assumptions, of which the picture has the short form:

- thinking times and answers' lengths are exponential; prompts cost nothing (prefix cache)
- a step's time depends on its rows alone, on a straight line between the measured batches; not on the
  preferences: w is D numbers a row, travels with its request, and touches no cache
- replicas share nothing, and users are spread over them evenly: eight do eight times as much; a replica is
  the machine that was measured: nothing is known of a GPU before one is measured

Checked against measurements: each inner batch as predicted from its neighbours, and `resident`'s whole
answers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.common import arguments

METHOD_OF_FIELD = {
    "plain_ms": "plain",
    "pad_ms": "shared",
    "shared_ms": "shared",
    "resident_ms": "resident",
}
"""Field of a measured record -> the method whose step time it is."""

ASSUMPTIONS = (
    "exponential thinking and lengths; free prompts; steps depend on their rows alone; "
    "replicas add up"
)


class Load(NamedTuple):
    """What the users do, and what a replica runs."""

    think: float  # seconds between an answer and the next question
    tokens: float  # of an answer
    rows: int  # answers that a replica runs at once


StepSeconds = dict[int, float]
"""Batch -> seconds a step, by ascending batch."""

Curve = Sequence[Mapping[str, float]]
"""What `points` returns: throughput and wait for each number of users."""


def read_step_times(path: Path) -> dict[str, StepSeconds]:
    """The step times of a result of step_time.py or engine_step_times.py, by method and file."""
    records = sorted(json.loads(path.read_text())["records"], key=lambda r: r["batch"])
    return {
        f"{method}, {path.stem}": {r["batch"]: r[field] / 1000 for r in records}
        for field, method in METHOD_OF_FIELD.items()
        if field in records[0]
    }


def step_seconds(steps: StepSeconds, rows: Any) -> Any:
    """Seconds of a step with so many rows, on a line between the measured batches."""
    return np.interp(rows, list(steps), list(steps.values()))


def throughput_and_wait(steps: StepSeconds, load: Load, users: int) -> tuple[float, float]:
    """One replica in its steady state.

    Args:
        steps: Its step times.
        load: What its users do.
        users: How many it has.

    Returns:
        Tokens a second, and seconds from question to answer.
    """
    open_requests = np.arange(1, users + 1)
    running = np.minimum(open_requests, load.rows)
    answers_per_s = running / (step_seconds(steps, running) * load.tokens)
    # Of a state with one open request less.
    questions_per_s = (users - open_requests + 1) / load.think
    log = np.concatenate(([0.0], np.cumsum(np.log(questions_per_s) - np.log(answers_per_s))))
    p = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    rate = float(p[1:] @ answers_per_s)
    return rate * load.tokens, float(p[1:] @ open_requests) / rate


def model_errors(path: Path) -> dict[str, Any]:
    """Relative errors of the model against what a file measured.

    By method each inner batch, predicted from its neighbours; and the engines' whole answers, if timed.
    """
    measured = read_step_times(path)
    errors: dict[str, Any] = {}
    for name, steps in measured.items():
        predicted = {
            batch: float(step_seconds({k: v for k, v in steps.items() if k != batch}, batch))
            for batch in list(steps)[1:-1]
        }
        errors[name] = {b: round(p / steps[b] - 1, 3) for b, p in predicted.items()}
    answers = json.loads(path.read_text()).get("paper_loop") or {"seconds": {}}
    for engine, seconds in answers["seconds"].items():
        name = f"{engine}, {path.stem}"
        if name in measured:
            step = float(step_seconds(measured[name], answers["batch"]))
            errors[f"{engine}'s answers"] = round(answers["new_tokens"] * step / seconds - 1, 3)
    return errors


def points(
    steps: StepSeconds, load: Load, *, replicas: int, max_users: int
) -> list[dict[str, float]]:
    """Throughput and wait by number of users.

    Args:
        steps: Step times of one replica.
        load: What the users do.
        replicas: Over which users are spread evenly.
        max_users: Of all replicas.
    """
    curve = []
    most = max(max_users // replicas, 1)
    for users in np.unique(np.geomspace(1, most, 30).round().astype(int)):
        tokens, wait = throughput_and_wait(steps, load, int(users))
        point = {"users": int(users) * replicas, "tokens_s": round(tokens * replicas, 2)}
        curve.append({**point, "answer_s": round(wait, 2)})
    return curve


def table(curves: Mapping[str, Curve]) -> list[str]:
    """tokens/s, and how many users it takes until an answer takes twice as long as one user's."""
    lines = ["| step times | most tokens/s | users at twice the wait |", "| --- | ---: | ---: |"]
    for name, curve in curves.items():
        waits, users = zip(*((r["answer_s"], r["users"]) for r in curve), strict=True)
        at_twice = float(np.interp(2 * waits[0], waits, users))
        lines.append(f"| {name} | {max(r['tokens_s'] for r in curve):,.0f} | {at_twice:,.0f} |")
    return lines


def draw(curves: Mapping[str, Curve], title: str, path: Path) -> None:
    """Throughput and wait against users, a line a method.

    Args:
        curves: By method and file.
        title: Above the picture.
        path: The picture's file.
    """
    figure = Figure(figsize=(11, 4.6), dpi=100, layout="constrained")
    labels = {"tokens_s": "tokens/s", "answer_s": "seconds an answer"}
    for axes, (field, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for name, curve in curves.items():
            x, y = zip(*((r["users"], r[field]) for r in curve), strict=True)
            axes.loglog(x, y, "--" if name.startswith("plain") else "-", label=name)
        axes.set_xlabel("users, each with a preference of their own")
        axes.set_ylabel(label)
        axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=8)
    figure.savefig(path)


def describe(args: argparse.Namespace, load: Load) -> str:
    """The assumptions in two lines, for result and picture."""
    stored = 4 * args.dimensions * args.preferences / 2**20
    return (
        f"A model, not a measurement: {args.replicas} replicas of the measured machine; {ASSUMPTIONS};\n"
        f"{load.think:g} s between, {load.tokens:g} tokens an answer, {load.rows} rows a replica; "
        f"{args.preferences:,} w of {args.dimensions} are {stored:.3g} MiB where all are stored"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument(
        "results", type=Path, nargs="+", help="of step_time.py and engine_step_times.py"
    )
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--think", type=float, default=60.0, help="seconds between answers")
    parser.add_argument("--tokens", type=float, default=128, help="of an answer")
    parser.add_argument("--rows", type=int, default=16, help="of a replica, at once")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--preferences", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=4)
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    load, steps = Load(args.think, args.tokens, args.rows), {}
    for path in args.results:
        steps |= read_step_times(path)
    if args.rows > (measured := min(map(max, steps.values()))):
        raise SystemExit(f"--rows {args.rows}: accepted is what all measured, at most {measured}")
    curves = {
        name: points(of_method, load, replicas=args.replicas, max_users=args.preferences)
        for name, of_method in steps.items()
    }
    errors = {path.name: model_errors(path) for path in args.results}
    title = describe(args, load)
    lines = table(curves)
    print("\n".join([*lines, "", title, "relative errors of the model:", json.dumps(errors)]))
    if args.picture:
        draw(curves, title, args.picture)
    result = {
        "command": arguments.command_line(),
        "about": title,
        "off": errors,
        "table": lines,
        "points": curves,
    }
    arguments.write_result(args.out, result)


if __name__ == "__main__":
    main()
