"""What `pad-vllm train` says before its parts begin, and what they take: tokens, GiB on the disk, minutes.

    python -m benchmarks.cost.estimates --base smollm2-135m --out estimates.json

One small run by each teacher, from nothing: answers drawn and scored by the commands, then trained on; with
--made-up no engine draws, and answers are words of the prompts. Tokens read are counted at the embedding of
the base (with padding; the estimate has none), bytes are those of the files. The time left is what is said
after the first batch; compared are parts of three seconds and more.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import arguments
from pad_vllm.evaluation.lexical_scorers import LEXICAL_SCORERS
from pad_vllm.opened_base import base_folder
from pad_vllm.text.chat_template import load_chat_tokenizer
from pad_vllm.training import training_run
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.preference_record import PreferenceRecord
from pad_vllm.training.distillation import distillation_method
from pad_vllm.training.distillation.distillation_prompts import SHIPPED_PROMPTS
from pad_vllm.training.distillation.instructed_answers import draw_in_subprocess
from pad_vllm.training.settings import DistillationSettings, Recipe, Settings
from pad_vllm.training.training_run import TrainingRun

_GIB = 2**30
_LEAST_SECONDS = 3.0
"""Of a part whose time is compared."""

_READ = re.compile(r"^(?P<part>[a-z ]+): (?P<tokens>[\d,]+) tokens to read")
_DRAWN = re.compile(r"^answers: (?P<count>[\d,]+) to draw, of at most (?P<most>\d+) tokens")
_LEFT = re.compile(
    r"^(?P<part>[^:]+?)(?: step \d+ of \d+)?: .*about (?P<time>[\d.]+) (?P<unit>minutes|seconds) left"
)
_SENTENCES = {
    "brief": "Answer in as few words as possible.",
    "formal": "Answer in formal language.",
}


@dataclass
class Watched:
    """What a run said, when, and what the base read meanwhile."""

    lines: list[tuple[float, str, int]] = field(default_factory=list)
    """Time, line, tokens read until then."""

    tokens: int = 0

    def watch_base(self, backbone: Any) -> Any:
        """Count what goes through the base's embedding."""
        backbone.get_input_embeddings().register_forward_hook(self._count)
        return backbone

    def _count(self, module: Any, inputs: tuple[torch.Tensor], output: Any) -> None:
        del module, output
        self.tokens += inputs[0].numel()

    def write_line(self, text: str) -> None:
        """A line of the log."""
        self.lines.append((time.monotonic(), text, self.tokens))
        print(text, flush=True)


def watched_run(settings: Settings, work: Path) -> tuple[Watched, TrainingRun]:
    """Train from nothing."""
    watched, load = Watched(), training_run.load_backbone
    training_run.load_backbone = lambda *given: watched.watch_base(load(*given))
    try:
        run = TrainingRun(settings, work / f"{settings.method}-cache", "")
        run.log.write_line = watched.write_line  # type: ignore[method-assign]
        run.train()
    finally:
        training_run.load_backbone = load
    return watched, run


def compared(watched: Watched, settings: Settings, work: Path) -> list[dict[str, Any]]:
    """A row for each thing that was said: what, said, used."""
    rows, said_bytes = [], 0.0
    for number, (_, line, before) in enumerate(watched.lines):
        if match := _READ.match(line):
            said_bytes += _bytes_said(line)
            rows.append(
                _row(
                    match["part"],
                    "tokens read",
                    match["tokens"],
                    _read_after(watched, number, before),
                )
            )
        match = _DRAWN.match(line)
        if match and distillation_method.draw_in_subprocess is draw_in_subprocess:
            most = int(match["count"].replace(",", "")) * int(match["most"])
            rows.append(_row("answers", "tokens drawn", most, _drawn(settings)))
    kept = sum(p.stat().st_size for p in (work / f"{settings.method}-cache").rglob("*.safetensors"))
    rows.append(_row("files", "GiB kept", said_bytes, kept / _GIB))
    return [{"teacher": settings.method, **row} for row in [*rows, *_minutes(watched)]]


def _bytes_said(line: str) -> float:
    return float(line.split(" GiB to keep", maxsplit=1)[0].rsplit(" ", 1)[1])


def _read_after(watched: Watched, number: int, before: int) -> int:
    """Tokens that the base read from a line to the end of the part: the line of its duration."""
    for _, line, tokens in watched.lines[number + 1 :]:
        if _READ.match(line) or re.match(r"^(cache|teacher): \d+ s$", line):
            return tokens - before
    return watched.tokens - before


def _drawn(settings: Settings) -> int:
    file = Path(f"{settings.out}.run") / "answers.jsonl"
    records = jsonl.read_lines(file, PreferenceRecord.model_validate_json)
    return sum(len(r.token_ids or ()) for record in records for r in record.responses)


def _minutes(watched: Watched) -> list[dict[str, Any]]:
    """The first time left that each loop said, and how long it then took to the next line that is not its
    own. A part may have several loops: one over the prompts that train, one over those held out.
    """
    rows, seen = [], set()
    for number, (at, line, _) in enumerate(watched.lines):
        match = _LEFT.match(line)
        if not match or match["part"] in seen:
            continue
        seen.add(match["part"])
        end = _end_of_loop(watched, number, match["part"])
        if end - at >= _LEAST_SECONDS:
            left = float(match["time"]) * (60 if match["unit"] == "minutes" else 1)
            rows.append(_row(match["part"], "seconds left", left, end - at))
    return rows


def _end_of_loop(watched: Watched, number: int, part: str) -> float:
    for at, line, _ in watched.lines[number + 1 :]:
        if not line.startswith(part) or line.startswith(f"{part}: 0 of "):
            return at
    return watched.lines[-1][0]


def _row(part: str, unit: str, said: Any, used: float) -> dict[str, Any]:
    value = float(str(said).replace(",", ""))
    share = value / used if used else float("nan")
    return {
        "part": part,
        "unit": unit,
        "said": value,
        "used": round(used, 4),
        "share": round(share, 2),
    }


def draw_and_score(args: argparse.Namespace, work: Path) -> Path:
    """Answers of the base with scores, by the commands."""
    prompts, drawn, scored = (
        work / name for name in ("prompts.txt", "drawn.jsonl", "scored.jsonl")
    )
    lines = SHIPPED_PROMPTS.read_text("utf-8").splitlines()[: args.prompts]
    prompts.write_text("\n".join(lines) + "\n")
    for options in (
        [
            "sample",
            args.base,
            "--prompts",
            prompts,
            "-n",
            "4",
            "--max-tokens",
            "40",
            "--out",
            drawn,
        ],
        ["score", drawn, "positive", "brief", "--out", scored],
    ):
        subprocess.run([sys.executable, "-m", "pad_vllm", *map(str, options)], check=True)
    return scored


def make_up_and_score(args: argparse.Namespace, work: Path) -> Path:
    """Four answers a prompt of 10 to 60 of the prompts' words, scored; for method prompt two."""
    lines = SHIPPED_PROMPTS.read_text("utf-8").splitlines()[: args.prompts]
    (work / "prompts.txt").write_text("\n".join(lines) + "\n")
    tokenizer = load_chat_tokenizer(base_folder(args.base), args.base, None)
    rng, words = random.Random(0), " ".join(lines).split()

    def answer(names: Sequence[str]) -> dict[str, Any]:
        text = " ".join(rng.choices(words, k=rng.randint(10, 30)))
        scores = {name: LEXICAL_SCORERS[name](text) for name in names}
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:40]
        return {"text": text, "scores": scores} | ({} if names else {"token_ids": ids})

    def write(file: Path, prompts: Sequence[Any], count: int, names: Sequence[str]) -> None:
        with file.open("w") as stream:
            for prompt in prompts:
                answers = [answer(names) for _ in range(count)]
                record = {"prompt": prompt, "responses": answers, "scorers": {n: n for n in names}}
                stream.write(json.dumps(record) + "\n")

    def draw(base: str, prompts: Sequence[Any], file: Path, *_: Any) -> None:
        del base
        write(file, [prompt.messages() for prompt in prompts], 2, ())

    distillation_method.draw_in_subprocess = draw  # type: ignore[assignment]
    write(work / "scored.jsonl", lines, 4, ("positive", "brief"))
    return work / "scored.jsonl"


def settings_of(args: argparse.Namespace, work: Path, scored: Path) -> list[Settings]:
    """A small run by each teacher."""

    def one(method: str, **more: Any) -> Settings:
        recipe = Recipe(epochs=1, head_epochs=int(method == "pairs"), evaluate_every=1000)
        data = () if method == "prompt" else (f"jsonl={scored}",)
        return Settings(
            args.base, data, str(work / method), dtype=args.dtype, method=method, recipe=recipe,
            prompted=False, **more,
        )  # fmt: skip

    teacher = DistillationSettings(
        _SENTENCES, prompts=str(work / "prompts.txt"), answers=args.prompts
    )
    return [one("pairs"), one("scores"), one("prompt", max_response=40, teacher=teacher)]


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line for each thing that was said."""
    lines = [
        "| teacher | part | | said | used | said / used |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        numbers = f"{row['said']:,.6g} | {row['used']:,.6g} | {row['share']:.2f}"
        lines.append(f"| {row['teacher']} | {row['part']} | {row['unit']} | {numbers} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, adapter=None)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--made-up", action="store_true")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        scored = (make_up_and_score if args.made_up else draw_and_score)(args, work)
        for settings in settings_of(args, work, scored):
            watched, _ = watched_run(settings, work)
            rows += compared(watched, settings, work)
    result = {"command": arguments.command_line(), "rows": rows, "table": table(rows)}
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
