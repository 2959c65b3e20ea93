"""How many users does it serve? A small queueing model over step times that were measured.

    python benchmarks/simulate.py results/speed.json results/cost.json --out simulate.json

N users, each with a preference of their own, wait --think seconds, ask, and read an answer of --tokens. A
replica runs up to --rows answers at once, a step for a token of each; the others wait. How many are open is
a birth-death chain, solved exactly. Assumptions, of which the picture has the short form:

- thinking times and answers' lengths are exponential; prompts cost nothing (prefix cache)
- a step's time depends on its rows alone, on a straight line between the measured batches; not on whose
  preferences they are: w is D numbers a row, travels with its request, and touches no cache
- replicas share nothing, and users are spread over them evenly: eight do eight times as much; a replica is
  the machine that was measured: of a GPU nothing is said before one was

Held against measurements: each inner batch as its neighbours tell it, and `resident`'s whole answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import arguments
import numpy as np
from matplotlib.figure import Figure

METHODS = {  # fields of a record
    "plain_ms": "plain",
    "pad_ms": "shared",
    "shared_ms": "shared",
    "resident_ms": "resident",
}
ASSUMED = "exponential thinking and lengths; free prompts; steps depend on their rows alone; replicas add up"


class Load(NamedTuple):
    think: float  # seconds between an answer and the next question
    tokens: float  # an answer
    rows: int  # that a replica runs at once


Steps = dict[int, float]  # batch -> seconds a step, by batch


def curves(path: Path) -> dict[str, Steps]:
    """By method and file."""
    records = sorted(json.loads(path.read_text())["records"], key=lambda r: r["batch"])
    return {
        f"{method}, {path.stem}": {r["batch"]: r[field] / 1000 for r in records}
        for field, method in METHODS.items()
        if field in records[0]
    }


def seconds(steps: Steps, rows: Any) -> Any:
    """Of a step."""
    return np.interp(rows, list(steps), list(steps.values()))


def served(steps: Steps, load: Load, users: int) -> tuple[float, float]:
    """(tokens/s, seconds from question to answer) of one replica in its steady state."""
    waiting = np.arange(1, users + 1)  # for their answer
    running = np.minimum(waiting, load.rows)
    ends = running / (seconds(steps, running) * load.tokens)  # answers in a second
    asks = (users - waiting + 1) / load.think  # questions in a second, one user fewer waiting
    log = np.concatenate(([0.0], np.cumsum(np.log(asks) - np.log(ends))))
    p = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    rate = float(p[1:] @ ends)
    return rate * load.tokens, float(p[1:] @ waiting) / rate


def held(path: Path) -> dict[str, Any]:
    """By what share the model is off what the file measured."""
    found = curves(path)
    off: dict[str, Any] = {}
    for name, steps in found.items():
        inner = {b: {k: v for k, v in steps.items() if k != b} for b in list(steps)[1:-1]}
        told = {b: float(seconds(rest, b)) for b, rest in inner.items()}
        off[name] = {b: round(t / steps[b] - 1, 3) for b, t in told.items()}
    whole = json.loads(path.read_text()).get("paper_loop") or {"seconds": {}}
    for engine, measured in whole["seconds"].items():
        own = f"{engine}, {path.stem}"
        if own in found:
            all_steps = whole["new_tokens"] * float(seconds(found[own], whole["batch"]))
            off[f"{engine}'s answers"] = round(all_steps / measured - 1, 3)
    return off


def points(steps: Steps, load: Load, replicas: int, most: int) -> list[dict[str, float]]:
    """By users, of whom every replica has its part."""
    made = []
    for each in np.unique(np.geomspace(1, max(most // replicas, 1), 30).round().astype(int)):
        tokens, wait = served(steps, load, int(each))
        users = {"users": int(each) * replicas}
        made.append({**users, "tokens_s": round(tokens * replicas, 2), "answer_s": round(wait, 2)})
    return made


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """tokens/s, and how many users it takes until an answer takes twice as long as one user's."""
    lines = ["| step times | most tokens/s | users at twice the wait |", "| --- | ---: | ---: |"]
    for name, some in found.items():
        waits, users = zip(*((r["answer_s"], r["users"]) for r in some), strict=True)
        fine = float(np.interp(2 * waits[0], waits, users))
        lines.append(f"| {name} | {max(r['tokens_s'] for r in some):,.0f} | {fine:,.0f} |")
    return lines


def draw(found: Mapping[str, Sequence[Mapping[str, float]]], about: str, path: Path) -> None:
    figure = Figure(figsize=(11, 4.6), dpi=100, layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("tokens_s", "answer_s"), strict=True):
        for name, some in found.items():
            x, y = zip(*((r["users"], r[what]) for r in some), strict=True)
            axes.loglog(x, y, "--" if name.startswith("plain") else "-", label=name)
        axes.set_xlabel("users, each with a preference of their own")
        axes.set_ylabel({"tokens_s": "tokens/s", "answer_s": "seconds an answer"}[what])
        axes.legend(fontsize=8)
    figure.suptitle(about, fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = arguments.parser(__doc__, base=None, adapter=None)
    parser.add_argument("results", type=Path, nargs="+", help="of speed.py and cost.py")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--think", type=float, default=60.0, help="seconds between answers")
    parser.add_argument("--tokens", type=float, default=128, help="an answer")
    parser.add_argument("--rows", type=int, default=16, help="of a replica, at once")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--preferences", type=int, default=1_000_000)
    parser.add_argument("--dimensions", type=int, default=4)
    args = parser.parse_args()
    load, steps = Load(args.think, args.tokens, args.rows), {}
    for path in args.results:
        steps |= curves(path)
    if args.rows > (measured := min(map(max, steps.values()))):
        raise SystemExit(f"--rows {args.rows}: accepted is what all measured, at most {measured}")
    found = {n: points(s, load, args.replicas, args.preferences) for n, s in steps.items()}
    checked = {path.name: held(path) for path in args.results}
    stored = 4 * args.dimensions * args.preferences / 2**20
    about = f"A model, not a measurement: {args.replicas} replicas of the measured machine; {ASSUMED};\n"
    about += (
        f"{load.think:g} s between, {load.tokens:g} tokens an answer, {load.rows} rows a replica; "
    )
    about += (
        f"{args.preferences:,} w of {args.dimensions} are {stored:.3g} MiB where all are stored"
    )
    lines = table(found)
    print("\n".join([*lines, "", about, "off what was measured by:", json.dumps(checked)]))
    if args.picture:
        draw(found, about, args.picture)
    result = {"command": arguments.command(), "about": about, "off": checked, "table": lines}
    arguments.report(args.out, {**result, "points": found})


if __name__ == "__main__":
    main()
