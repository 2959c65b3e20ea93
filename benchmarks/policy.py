"""The training-based baseline: one LoRA policy a dimension, by DPO (TRL's trainer), on scored responses.

    python benchmarks/policy.py --data scored.jsonl --dimension positive --minutes 5 --out policies/positive

What one does without PAD: the best and the worst response of each prompt by the dimension's score are a pair,
and a LoRA of the whole model learns to prefer the first. --minutes bounds the training itself, so that
policies and reward adapters can be compared at equal time. `peers.py --policy positive=policies/positive`
judges it beside the others; mixes there are averages of two policies' weights (rewarded soups).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import arguments
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.preference_record import PreferenceRecord


def pairs(path: Path, dimension: str, least: float) -> Iterator[dict[str, Any]]:
    """In TRL's conversational form; least: the smallest difference of scores, in standard deviations."""
    records = list(jsonl.read_lines(path, PreferenceRecord.model_validate_json))
    scores = [
        r.scores[dimension] for one in records for r in one.responses if dimension in r.scores
    ]
    spread = float(torch.tensor(scores).std())
    for record in records:
        known = [r for r in record.responses if dimension in r.scores]
        ranked = sorted(known, key=lambda r: r.scores[dimension])
        if ranked and ranked[-1].scores[dimension] - ranked[0].scores[dimension] >= least * spread:
            yield {
                "prompt": [turn.model_dump() for turn in record.prompt],
                "chosen": [{"role": "assistant", "content": ranked[-1].text}],
                "rejected": [{"role": "assistant", "content": ranked[0].text}],
            }


class Until(TrainerCallback):
    """Ends the training when its time is over."""

    def __init__(self, minutes: float) -> None:
        self.minutes, self.end = minutes, math.inf

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.end = time.monotonic() + 60 * self.minutes

    def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
        control.should_training_stop |= time.monotonic() > self.end


def parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__, adapter=None)
    parser.add_argument("--data", type=Path, required=True, help="what `pad-vllm score` wrote")
    parser.add_argument("--dimension", required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--least-margin", type=float, default=0.3, help="in standard deviations")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--beta", type=float, default=0.1, help="of DPO")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    return parser.parse_args()


def main() -> None:
    args = parse()
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    base = resolve_base(args.base)
    found = list(pairs(args.data, args.dimension, args.least_margin))
    if not found:
        raise SystemExit(
            f"{args.data}: no prompt has two responses that differ in {args.dimension}"
        )
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(args.out),
            beta=args.beta,
            learning_rate=args.rate,
            per_device_train_batch_size=min(args.batch, 4),
            gradient_accumulation_steps=max(1, args.batch // 4),
            num_train_epochs=100,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=5,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            logging_steps=5,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_list(found),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"),
        callbacks=[Until(args.minutes)],
    )
    result = trainer.train()
    trainer.save_model(str(args.out))
    facts = {
        "command": arguments.command(),
        "pairs": len(found),
        "steps": result.global_step,
        "minutes": round(result.metrics["train_runtime"] / 60, 2),
        "loss": round(result.training_loss, 4),
    }
    (args.out / "policy.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
