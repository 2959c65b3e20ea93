"""Makes every result again, one after the other, and goes on where it stopped.

    python -m benchmarks.evidence --prompts prompts.jsonl --out evidence        (`make evidence`)
    python -m benchmarks.evidence --smoke --out evidence-smoke                  (`make evidence-smoke`)

evidence.json has the commands. A step whose result exists is not run again; a step that fails is listed at
the end, and the others go on. --prompts: the prompts that are answered, as `pad-vllm steer --prompts` reads
them; without it the last 50 of the prompts that ship, which no adapter here was trained on (`pad-vllm train`
uses them by default). Judges and peers' vectors are made from others of the shipped prompts.
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

from benchmarks.common import arguments
from pad_vllm.training.distillation.distillation_prompts import SHIPPED_PROMPTS
from pad_vllm.training.sampling.sample_responses import read_prompts

COMMANDS = Path(__file__).with_suffix(".json")
"""Name of a step -> "run": its command, with {fields}; "smoke": what a slice of it adds."""


class EvidenceStep(NamedTuple):
    """One command, its {fields} filled in."""

    name: str
    argv: list[str]
    result: Path
    """The file that the command writes; where it exists the step is done."""


def write_prompt_files(out: Path, prompts: Path | None, *, smoke: bool) -> dict[str, str]:
    """Write the prompts that the commands read.

    Args:
        out: Folder of the files.
        prompts: Those that are answered; None for shipped ones.
        smoke: Only a few of each.

    Returns:
        Field of a command -> file: `prompts` (50), `some` (20 of them), `judge` (40 others) and `learn` (20
        others).
    """
    shipped = read_prompts(SHIPPED_PROMPTS)
    answered = shipped[-50:] if prompts is None else read_prompts(prompts)
    few = 2 if smoke else 20
    parts = {
        "prompts": answered[: 2 if smoke else 50],
        "some": answered[:few],
        "judge": shipped[: 8 if smoke else 40],
        "learn": shipped[40 : 40 + few],
    }
    files = {}
    for name, part in parts.items():
        path = out / f"{name}.jsonl"
        path.write_text("".join(f'{{"prompt": {prompt.to_json()}}}\n' for prompt in part))
        files[name] = str(path)
    return files


def make_steps(
    commands: Mapping[str, Mapping[str, str]],
    fields: Mapping[str, str],
    out: Path,
    *,
    smoke: bool,
) -> Iterator[EvidenceStep]:
    """The steps of evidence.json, in its order.

    Args:
        commands: Contents of evidence.json.
        fields: Values of the commands' fields, beside {out} and {result}.
        out: Folder of the results.
        smoke: A slice of each.
    """
    for name, command in commands.items():
        result = out / f"{name}.json"
        words = command["run"] + (f" {command['smoke']}" if smoke and "smoke" in command else "")
        module, *argv = (w.format(**fields, out=out, result=result) for w in shlex.split(words))
        module = "pad_vllm" if module == "pad-vllm" else module
        yield EvidenceStep(name, [sys.executable, "-m", module, *argv], result)


def run_step(step: EvidenceStep, log: Path) -> bool:
    """Run a step unless its result exists -> whether it exists now; log: gets the command's output."""
    if step.result.exists():
        return True
    start = time.monotonic()
    with log.open("ab") as file:
        code = subprocess.call(step.argv, stdout=file, stderr=subprocess.STDOUT)
    done = code == 0 and step.result.exists()
    message = "done" if done else f"failed, exit code {code}: see {log}"
    print(f"{step.name:<16} {message}, {(time.monotonic() - start) / 60:.1f} minutes", flush=True)
    return done


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__, base=None, adapter=None)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--only", nargs="+", help="names of evidence.json")
    parser.add_argument("--smoke", action="store_true", help="a slice of each")
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    args.out.mkdir(parents=True, exist_ok=True)
    fields = write_prompt_files(args.out, args.prompts, smoke=args.smoke)
    fields["tokens"] = "8" if args.smoke else "80"
    commands = json.loads(COMMANDS.read_text())
    if unknown := set(args.only or ()) - set(commands):
        raise SystemExit(f"--only {unknown.pop()}: evidence.json has {', '.join(commands)}")
    steps = make_steps(commands, fields, args.out, smoke=args.smoke)
    chosen = [step for step in steps if step.name in (args.only or commands)]
    failed = [step.name for step in chosen if not run_step(step, args.out / f"{step.name}.log")]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
