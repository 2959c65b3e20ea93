"""What the fork cache saves: an epoch from cached fork activations against one by full forwards.

    python benchmarks/fork_cache.py --samples scored.jsonl --out benchmarks/results/fork_cache.json

Stage 1 (trunk and heads) over the same prompts, batches and preferences, three ways taking turns in one
process: "cached"; "full", two full forwards a step, of the reference and of the policy, as preference
training does without a fork; and "forked", where the layers below the fork are run once for both. All three
take gradients through the top layers alone. Prints seconds, ratios and peak memory, then writes JSON.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import arguments
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer

from pad_vllm.training.data.prepare_data import checkpoint_folder, prepare_groups
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.loop.pair_dataset import PairDataset
from pad_vllm.training.loop.trainer import epoch_batches
from pad_vllm.training.objective.fork_cache import CachedResponse
from pad_vllm.training.objective.loss_module import PreferenceObjective
from pad_vllm.training.objective.training_model import load_backbone, untrained_persrm
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.provenance import peak_memory_gib
from pad_vllm.training.settings import Recipe, Settings


class Twice(TrainingStore):
    """The layers below the fork are run for the policy too, not only for the reference."""

    def responses(self, group: PromptGroup, *, with_targets: bool = False) -> list[CachedResponse]:
        found = super().responses(group, with_targets=with_targets)
        ids = [torch.tensor([*group.prompt_ids, *r][:-1]) for r in group.response_ids]
        forked = self.model.states_below_fork(pad_sequence(ids, batch_first=True))
        return [replace(r, forked=forked[row, : len(r.forked)]) for row, r in enumerate(found)]


def epoch(
    prompts: PairDataset, objective: PreferenceObjective, optimiser: torch.optim.Optimizer
) -> float:
    """Seconds of one epoch."""
    recipe, start = prompts.recipe, time.perf_counter()
    for step, batch in enumerate(epoch_batches(prompts.lengths, recipe.groups, 0, 1, 0)):
        for first in range(0, len(batch), recipe.micro_groups):
            micro = batch[first : first + recipe.micro_groups]
            objective([prompts.example(i, 1, step) for i in micro], len(batch)).backward()
        optimiser.step()
        optimiser.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    parser = arguments.parser(__doc__, adapter=None)
    parser.add_argument("--samples", type=Path, required=True, help="of pad-vllm score")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    settings = Settings(
        args.base,
        (f"jsonl={args.samples}",),
        out="",
        dtype=args.dtype,
        limit=args.prompts,
        recipe=Recipe(branch_share=0.0),
    )
    folder = checkpoint_folder(args.base)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prepared = prepare_groups(settings, tokenizer)
    model = untrained_persrm(load_backbone(folder, args.dtype), prepared.dimensions, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=0.0)
    objective = PreferenceObjective(model, settings.recipe)
    seconds: dict[str, list[float]] = {"cached": [], "forked": [], "full": []}
    with tempfile.TemporaryDirectory() as cache:
        ways = {}
        for name in seconds:
            cached = name == "cached"
            kind = Twice if name == "full" else TrainingStore
            store = kind(model, tokenizer, replace(settings, cached=cached), Path(cache), "weights")
            start = time.perf_counter()
            store.build(prepared.train, 0, 1, lambda *_: None, with_targets=False)
            if cached:
                building = time.perf_counter() - start
            ways[name] = PairDataset(store, prepared.train, prepared.validation, settings.recipe)
        for round_ in range(args.rounds):
            for name, prompts in ways.items():
                seconds[name].append(epoch(prompts, objective, optimiser))
                print(f"round {round_ + 1} {name}: {seconds[name][-1]:.1f} s", flush=True)
    ratios = {
        name: statistics.median(
            a / b for a, b in zip(seconds[name], seconds["cached"], strict=True)
        )
        for name in ("full", "forked")
    }
    result = {
        "command": arguments.command(),
        "prompts": len(prepared.train),
        "responses": sum(len(group.response_ids) for group in prepared.train),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "building_once": building,
        "ratios": ratios,
        "peak_memory_gib": round(peak_memory_gib(), 2),
    }
    for name, ratio in ratios.items():
        print(f"a cached epoch is {ratio:.2f}x as fast as one by {name} forwards")
    print(f"building the cache once: {building:.1f} s")
    print(f"peak memory {result['peak_memory_gib']} GiB")
    arguments.report(args.out, result)


if __name__ == "__main__":
    main()
