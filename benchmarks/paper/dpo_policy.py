"""The training-based baseline: one LoRA policy a dimension, by DPO (TRL's trainer), on scored responses.

    python -m benchmarks.paper.dpo_policy --data scored.jsonl --dimension positive --out policies/positive

The alternative to PAD: the best and the worst response of each prompt by the dimension's score are a pair,
and a LoRA of the whole model learns to prefer the first. --minutes bounds the training itself, so that
policies and reward adapters can be compared at equal time. `peer_methods.py --policy positive=FOLDER`
judges it beside other methods; mixes there are averages of two policies' weights (rewarded soups). With
--processor-time the minutes are those of this process alone, so that other work on the machine costs nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from benchmarks.common import arguments
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.preference_record import PreferenceRecord


def preference_pairs(path: Path, dimension: str, least_margin: float) -> Iterator[dict[str, Any]]:
    """The best and the worst response of each prompt, in TRL's conversational form.

    Args:
        path: What `pad-vllm score` wrote.
        dimension: Whose scores rank the responses.
        least_margin: Smallest difference of their scores, in standard deviations of all scores.
    """
    records = list(jsonl.read_lines(path, PreferenceRecord.model_validate_json))
    scores = [
        r.scores[dimension] for record in records for r in record.responses if dimension in r.scores
    ]
    spread = float(torch.tensor(scores).std())
    for record in records:
        scored = [r for r in record.responses if dimension in r.scores]
        ranked = sorted(scored, key=lambda r: r.scores[dimension])
        if not ranked:
            continue
        margin = ranked[-1].scores[dimension] - ranked[0].scores[dimension]
        if margin >= least_margin * spread:
            yield {
                "prompt": [turn.model_dump() for turn in record.prompt],
                "chosen": [{"role": "assistant", "content": ranked[-1].text}],
                "rejected": [{"role": "assistant", "content": ranked[0].text}],
            }


class TimeLimit(TrainerCallback):
    """Ends the training after some minutes."""

    def __init__(self, minutes: float, clock: Callable[[], float]) -> None:
        self.minutes, self.clock, self.end = minutes, clock, math.inf

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self.end = self.clock() + 60 * self.minutes

    def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
        """Stops the training where the time is over; control: a TrainerControl."""
        control.should_training_stop |= self.clock() > self.end


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__, adapter=None)
    parser.add_argument("--data", type=Path, required=True, help="what `pad-vllm score` wrote")
    parser.add_argument("--dimension", required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--dtype", default="float32", help="of the frozen base")
    parser.add_argument("--least-margin", type=float, default=0.3, help="in standard deviations")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--beta", type=float, default=0.1, help="of DPO")
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--batch", type=int, default=8, help="pairs a step")
    return parser.parse_args()


def trainer_settings(args: argparse.Namespace) -> Any:
    """TRL's DPOConfig; args: the command line."""
    from trl import DPOConfig

    return DPOConfig(
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
    )


def main() -> None:
    """See the module's docstring."""
    args = parse()
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOTrainer

    base = resolve_base(args.base)
    pairs = list(preference_pairs(args.data, args.dimension, args.least_margin))
    if not pairs:
        raise SystemExit(
            f"{args.data}: no prompt has two responses that differ in {args.dimension}"
        )
    clock = time.process_time if args.processor_time else time.monotonic
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, args.dtype)),
        args=trainer_settings(args),
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear"),
        callbacks=[TimeLimit(args.minutes, clock)],
    )
    begun = time.process_time()
    result = trainer.train()
    trainer.save_model(str(args.out))
    facts = {
        "command": arguments.command_line(),
        "pairs": len(pairs),
        "steps": result.global_step,
        "minutes": round(result.metrics["train_runtime"] / 60, 2),
        "processor_minutes": round((time.process_time() - begun) / 60, 2),
        "loss": round(result.training_loss, 4),
    }
    (args.out / "policy.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
