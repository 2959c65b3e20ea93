"""Makes every result again, one after the other, and goes on where it stopped.

    python benchmarks/evidence.py --prompts prompts.jsonl --out evidence        (`make evidence`)
    python benchmarks/evidence.py --smoke --out evidence-smoke                  (`make evidence-smoke`)

evidence.json names the commands. A step whose result is there is not made again; one that fails is named at
the end, and the others go on. --prompts: what everybody answers, as `pad-vllm evaluate --steering` reads it;
without it the last 50 of the prompts that ship, which taught nobody here but teach by default. Judges and
peers' vectors are made from others of these.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pad_vllm.training.distillation.distillation_prompts import SHIPPED_PROMPTS
from pad_vllm.training.sampling.sample_responses import read_prompts

HERE = Path(__file__).parent


class Step(NamedTuple):
    """One command, its words' {places} filled in."""

    name: str
    argv: list[str]
    made: Path
    """Its result; where it lies the step is done."""


def prompt_files(out: Path, prompts: Path | None, smoke: bool) -> dict[str, str]:
    """Place -> file: `prompts` (50), `some` (20 of them), `judge` (40 others) and `learn` (20 others)."""
    shipped = read_prompts(SHIPPED_PROMPTS)
    asked = shipped[-50:] if prompts is None else read_prompts(prompts)
    few = 2 if smoke else 20
    parts = {
        "prompts": asked[: 2 if smoke else 50],
        "some": asked[:few],
        "judge": shipped[: 8 if smoke else 40],
        "learn": shipped[40 : 40 + few],
    }
    files = {}
    for name, part in parts.items():
        path = out / f"{name}.jsonl"
        path.write_text("".join(f'{{"prompt": {prompt.to_json()}}}\n' for prompt in part))
        files[name] = str(path)
    return files


def steps(
    table: Mapping[str, Mapping[str, str]], places: Mapping[str, str], out: Path, smoke: bool
) -> Iterator[Step]:
    """Of evidence.json, in its order."""
    for name, step in table.items():
        made = out / f"{name}.json"
        words = step["run"] + (f" {step['smoke']}" if smoke and "smoke" in step else "")
        argv = [word.format(**places, out=out, made=made) for word in shlex.split(words)]
        if argv[0] == "pad-vllm":
            argv = ["-m", "pad_vllm", *argv[1:]]
        else:
            argv[0] = str(HERE / argv[0])
        yield Step(name, [sys.executable, *argv], made)


def run(step: Step, log: Path) -> bool:
    """Whether the step's result is there."""
    if step.made.exists():
        return True
    begin = time.monotonic()
    with log.open("ab") as file:
        code = subprocess.call(step.argv, stdout=file, stderr=subprocess.STDOUT)
    done = code == 0 and step.made.exists()
    said = "done" if done else f"failed, exit code {code}: see {log}"
    print(f"{step.name:<16} {said}, {(time.monotonic() - begin) / 60:.1f} minutes", flush=True)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="names of evidence.json")
    parser.add_argument("--smoke", action="store_true", help="a slice of each")
    args = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    args.out.mkdir(parents=True, exist_ok=True)
    places = prompt_files(args.out, args.prompts, args.smoke)
    places["tokens"] = "8" if args.smoke else "80"
    table = json.loads((HERE / "evidence.json").read_text())
    if unknown := set(args.only or ()) - set(table):
        raise SystemExit(f"--only {unknown.pop()}: evidence.json has {', '.join(table)}")
    chosen = [
        s for s in steps(table, places, args.out, args.smoke) if s.name in (args.only or table)
    ]
    failed = [s.name for s in chosen if not run(s, args.out / f"{s.name}.log")]
    if failed:
        raise SystemExit(f"not made: {', '.join(failed)}")


if __name__ == "__main__":
    main()
