r"""The demo adapter from nothing but prompts and human pairs: the command that makes and measures it.

    python benchmarks/training.py --self-instruct SEED_TASKS.jsonl USER_ORIENTED.jsonl \
        --hh HH_HARMLESS.jsonl.gz --folder WORK --out benchmarks/results/training.json

Prompts: Self-Instruct's instructions and first questions of HH-RLHF, in random order. The base answers
each four times, local scorers score the answers, and a PersRM is trained on them and on the human pairs.
Every step resumes, so the same command may be stopped and started. Writes the held-out rows of the
adapter's card as JSON, and beside it what every step said (.log) and the training run's own log (.run.log).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import arguments

MODEL, NAME = "smollm2-135m", "SmolLM2-135M-Instruct"
SCORERS = ("positive", "brief", "simple", "personal")
LONGEST = 1200  # characters of a prompt


def instructions(path: Path) -> Iterable[str]:
    for line in path.read_text().splitlines():
        task = json.loads(line)
        given = (task.get("instances") or [{}])[0].get("input", "")
        yield "\n\n".join(part for part in (task["instruction"], given) if part).strip()


def first_questions(path: Path) -> Iterable[str]:
    with gzip.open(path, "rt") as file:
        for line in file:
            asked = json.loads(line)["chosen"].split("\n\nHuman: ")[1]
            yield asked.split("\n\nAssistant:")[0].strip()


def prompts(args: argparse.Namespace) -> list[str]:
    """All instructions, then questions up to --prompts, in an order that the seed fixes."""
    found = list(dict.fromkeys(i for path in args.self_instruct for i in instructions(path)))
    questions = [q for q in dict.fromkeys(first_questions(args.hh)) if q]
    random.Random(0).shuffle(questions)
    found += questions[: args.prompts - len(found)]
    random.Random(0).shuffle(found)
    return [prompt for prompt in found if len(prompt) < LONGEST]


def step(log: Path, folder: Path, *words: str) -> None:
    """One pad-vllm command in `folder`, its output on the console and in the log."""
    start = time.monotonic()
    with log.open("a") as file:
        for line in (f"\n$ pad-vllm {shlex.join(words)}\n",):
            print(line, end="", flush=True)
            file.write(line)
        command = [sys.executable, "-m", "pad_vllm", *words]
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for line in process.stdout or ():
            print(line, end="", flush=True)
            file.write(line)
        if process.wait():
            sys.exit(f"pad-vllm {words[0]} ended with exit code {process.returncode}")
        file.write(f"({time.monotonic() - start:.0f} s)\n")


def main() -> None:
    parser = arguments.parser(__doc__, base=None, adapter=None)
    parser.add_argument("--self-instruct", type=Path, nargs="+", required=True)
    parser.add_argument("--hh", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    log = args.out.with_suffix(".log").absolute()
    with (args.folder / "prompts.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts(args))
    human = args.folder / args.hh.name
    if not human.exists():
        human.write_bytes(args.hh.read_bytes())
    sample = ("sample", MODEL, "--prompts", "prompts.jsonl", "--out", "samples.jsonl")
    step(log, args.folder, *sample)
    step(log, args.folder, "score", "samples.jsonl", *SCORERS, "--out", "scored.jsonl")
    data = ("--data", "jsonl=scored.jsonl", "--data", f"hh-rlhf:harmless={human.name}")
    train = ("train", MODEL, "--name", NAME, *data, "--out", "adapter", "--dtype", "bfloat16")
    limits = ("--max-prompt", "160", "--validation", "0.07", "--held-out", "0.15")
    step(log, args.folder, *train, *limits)
    trained = json.loads((args.folder / "adapter" / "pad_config.json").read_text())["training"]
    result = {
        "command": arguments.command(),
        "held_out": trained["held_out"],
        "data": trained["data"],
        "seconds": trained["seconds"],
        "peak_memory_gib": trained["peak_memory_gib"],
        "versions": trained["versions"],
    }
    arguments.report(args.out, result)
    # The run's own log has every start of it; the console's only this one.
    shutil.copy(args.folder / "adapter.run" / "log.txt", args.out.with_suffix(".run.log"))


if __name__ == "__main__":
    main()
