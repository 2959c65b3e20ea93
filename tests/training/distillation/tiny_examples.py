"""A distillation of seconds from two instructions, for the tests of this room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny

from pad_vllm.training.settings import DistillationSettings, Recipe, Settings

SENTENCES = {"warm": "be warm", "brief": "be brief"}
RECIPE = {
    "epochs": 2,
    "head_epochs": 1,
    "groups": 4,
    "micro_groups": 2,
    "candidates": 8,
    "lora_lr": 5e-3,
    "head_lr": 1e-3,
    "evaluate_every": 3,
}


def prompts(root: Path, count: int = 40) -> Path:
    """A file of prompts, each a line."""
    file = root / "prompts.txt"
    file.write_text("".join(f"question {number}\n" for number in range(count)))
    return file


def answer(root: Path, out: str, prompts: list[str]) -> None:
    """The answers that the base would have drawn to prompts (messages as JSON), put where they belong."""
    work = root / f"{out}.run"
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny.tokenizer()
    with (work / "answers.jsonl").open("w") as file:
        for number, prompt in enumerate(prompts):
            texts = f"a plain answer {number}", f"dear friend, {number}!"
            responses = [{"text": t, "token_ids": tokenizer.encode(t)} for t in texts]
            line = {"prompt": prompt.messages(), "responses": responses}
            file.write(json.dumps(line) + "\n")


def settings(root: Path, out: str = "out", **changes: Any) -> Settings:
    """On a tiny Llama in root/base, made if missing; of 40 prompts 24 are answered."""
    base = root / "base"
    if not base.exists():
        tiny.checkpoint("llama", base)
    recipe = Recipe(**{**RECIPE, **changes.pop("recipe", {})})
    asked = {"sentences": SENTENCES, "answers": 24, "prompts": str(prompts(root))}
    teacher = DistillationSettings(**{**asked, **changes.pop("teacher", {})})
    usual = {"fork_layer": 2, "lora_rank": 4, "head_rank": 8, "validation": 0.15, "held_out": 0.2}
    return Settings(
        base=str(base),
        data=(),
        out=str(root / out),
        top_k=8,
        max_response=24,
        method="prompt",
        teacher=teacher,
        recipe=recipe,
        **{**usual, **changes},
    )
