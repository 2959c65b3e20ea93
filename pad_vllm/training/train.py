"""Command: scored samples in, adapter folder out.

    python -m pad_vllm.training.train BASE --samples samples.jsonl --out ADAPTER

BASE is a local checkpoint folder. Writes the adapter of adapter.py with its model card, and prints
held-out pair accuracy before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pad_vllm.adapter import Adapter, AdapterConfig, Backbone, LoRA, save
from pad_vllm.evaluation.scorers import WHOLE, score
from pad_vllm.manifest import FORMAT_VERSION
from pad_vllm.persrm import PersRM
from pad_vllm.training import cache, data, trainer
from pad_vllm.training.card import card


def to_adapter(
    model: PersRM, backbone: Backbone, training: dict[str, Any], **defaults: Any
) -> Adapter:
    """The trained tensors as an adapter, LoRA in float16: half the size, finer than bfloat16."""
    weights = {
        key: (a.detach().half().contiguous(), b.detach().half().contiguous())
        for key, (a, b) in model.lora_weights().items()
    }
    settings = model.lora.peft_config["default"]
    config = AdapterConfig(
        format_version=FORMAT_VERSION,
        backbone=backbone,
        fork_layer=model.fork_layer,
        dimensions=model.dimensions,
        head_rank=model.head_A.shape[1],
        training=training,
        **defaults,
    )
    alpha = float(settings.lora_alpha)
    lora = LoRA(rank=settings.r, alpha=alpha, scaling=alpha / settings.r, weights=weights)
    return Adapter(config, lora, model.head_A.detach().clone(), model.head_B.detach().clone())


def text_scores(tokenizer: Any, dimensions: tuple[str, ...]) -> Callable[[list[int]], list[float]]:
    """Scores of a few last tokens, 0 where a scorer says nothing of unfinished text."""

    def scored(ids: list[int]) -> list[float]:
        found = score(tokenizer.decode(ids, skip_special_tokens=True), dimensions)
        return [
            0.0 if name in WHOLE else value for name, value in zip(dimensions, found, strict=True)
        ]

    return scored


def fit(
    model: PersRM,
    cached: list[list[cache.Response]],
    groups: list[data.Group],
    recipe: trainer.Recipe,
    scored: Callable[[list[int]], list[float]],
) -> trainer.Report:
    """Score the branches and train."""
    if recipe.branch_share > 0:
        cache.add_branches(groups, cached, scored, share=recipe.branch_share, seed=recipe.seed)
    examples = [trainer.Example(r, g.scores) for r, g in zip(cached, groups, strict=True)]
    return trainer.train(model, examples, recipe)


def run(args: argparse.Namespace) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    recipe = trainer.Recipe(
        **{f.name: getattr(args, f.name) for f in dataclasses.fields(trainer.Recipe)}
    )
    dimensions = tuple(args.dimensions.split(","))
    torch.manual_seed(recipe.seed)
    dtype = getattr(torch, args.dtype)
    backbone = AutoModelForCausalLM.from_pretrained(args.base, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    groups = data.standardise(data.load_groups(args.samples, tokenizer, dimensions))
    train, test = data.split(groups, args.held_out)
    model = PersRM(
        backbone,
        fork_layer=args.fork_layer,
        dimensions=dimensions,
        lora_rank=args.lora_rank,
        lora_alpha=2.0 * args.lora_rank,
        head_rank=args.head_rank,
    )
    start = time.monotonic()
    fitted, held = (cache.build(model, part, recipe.candidates) for part in (train, test))
    cached = time.monotonic() - start
    print(
        f"{len(train)} prompts to train on, {len(test)} held out; cached in {cached:.0f} s",
        flush=True,
    )
    report = fit(model, fitted, train, recipe, text_scores(tokenizer, dimensions))
    unseen = [trainer.Example(r, g.scores) for r, g in zip(held, test, strict=True)]
    accuracy = trainer.accuracy(model, unseen, recipe)
    print(json.dumps({"accuracy": accuracy, "seconds": round(report.seconds)}), flush=True)
    described = {
        "command": shlex.join(["python", "-m", "pad_vllm.training.train", *args.shown]),
        "recipe": dataclasses.asdict(recipe),
        "data": {
            "prompts": len(train),
            "held_out_prompts": len(test),
            "responses": sum(len(g.response_ids) for g in groups),
            "described": args.data,
        },
        "held_out_pair_accuracy": accuracy,
        "seconds": {"cache": round(cached), "train": round(report.seconds)},
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    adapter = to_adapter(
        model,
        Backbone.from_checkpoint(Path(args.base), args.name),
        described,
        beta=args.beta,
        top_k=args.top_k,
    )
    save(adapter, args.out, card(adapter.config, None))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("base", help="checkpoint folder of the backbone")
    parser.add_argument("--name", default=None, help="the backbone's name in the model card")
    parser.add_argument("--samples", type=Path, required=True)
    parser.add_argument("--data", default="", help="what the samples are, for the model card")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dimensions", default="positive,brief,simple", help="scorers, by name")
    parser.add_argument("--fork-layer", type=int, default=22)
    parser.add_argument("--lora-rank", type=int, default=16)
    parser.add_argument("--head-rank", type=int, default=16)
    parser.add_argument("--held-out", type=float, default=0.1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--beta", type=float, default=1.0, help="default strength of guidance")
    parser.add_argument("--top-k", type=int, default=20, help="default number of candidates")
    for field in dataclasses.fields(trainer.Recipe):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(name, type=type(field.default), default=field.default)
    args = parser.parse_args(argv)
    args.shown = argv if argv is not None else sys.argv[1:]
    run(args)


if __name__ == "__main__":
    main()
