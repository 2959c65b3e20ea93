"""Preference data with a planted answer for the trainer's tests: cheerful short against gloomy long."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from pad_vllm.training.settings import Recipe, Settings

DIMENSIONS = ("positive", "brief")
WORDS = {1.0: ("good", "love", "nice"), -1.0: ("bad", "hate", "awful")}

RECIPE = {
    "epochs": 2,
    "head_epochs": 2,
    "groups": 4,
    "micro_groups": 2,
    "candidates": 8,
    "lora_lr": 5e-3,
    "head_lr": 2e-2,
    "evaluate_every": 5,
    "branch_share": 0.2,
}
"""A run of seconds."""


def write(path: Path, prompts: int = 40) -> Path:
    """JSONL of records: of each prompt's two responses one is the more positive, one the briefer."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(prompts):
            lengths = rng.sample((3, 7), 2)
            responses = [
                {
                    "text": " ".join(rng.choices(words, k=length)) + ".",
                    "scores": {"positive": value, "brief": -float(length)},
                }
                for (value, words), length in zip(WORDS.items(), lengths, strict=True)
            ]
            scorers = {"positive": "positive", "brief": "brief"}
            record = {"prompt": f"question {number}", "responses": responses, "scorers": scorers}
            file.write(json.dumps(record) + "\n")
    return path


def settings(root: Path, out: str = "out", **changes: Any) -> Settings:
    """A run of seconds on a tiny Llama in root/base over root/data.jsonl; both are made if missing."""
    base, data = root / "base", root / "data.jsonl"
    if not base.exists():
        tiny.checkpoint("llama", base)
        write(data)
    recipe = {**RECIPE, **changes.pop("recipe", {})}
    usual = {"fork_layer": 2, "lora_rank": 4, "head_rank": 4, "validation": 0.15, "held_out": 0.2}
    return Settings(
        base=str(base),
        data=(f"jsonl={data}",),
        out=str(root / out),
        top_k=8,
        recipe=Recipe(**recipe),
        **{**usual, **changes},
    )


class Killed(BaseException):
    """What a test raises where a kill would end the process."""


def kill(run: Any, stage: int, step: int) -> None:
    """Train a run until it logs that step, and no further."""
    write_history_row = run.log.write_history_row

    def stop(row: dict[str, Any], steps: int) -> None:
        write_history_row(row, steps)
        if (row["stage"], row["step"]) == (stage, step):
            raise Killed

    run.log.write_history_row = stop
    with pytest.raises(Killed):
        run.train()


def require_equal(one: Any, other: Any) -> None:
    """Two adapters' down-projections, gates and LoRA are the same numbers."""
    assert torch.equal(one.head_A, other.head_A)
    assert (one.head_G is None) == (other.head_G is None)
    assert one.head_G is None or torch.equal(one.head_G, other.head_G)
    for key, (a, b) in other.lora.weights.items():
        assert torch.equal(one.lora.weights[key][0], a)
        assert torch.equal(one.lora.weights[key][1], b)
