"""How fast given text is read for training and judging, beside one plain forward over the same batches.

    python -m benchmarks.speed.reading --base smollm2-135m --out reading.json

Readers: the fork cache (with a trunk; heads only), the teacher's states, perplexities, sums of features. All
read the same prompts and answers of mixed lengths, 16 sequences of about one length at a time. "plain" is
the decoder alone over these batches, without any logits; "logits" has those of every token too, as a causal
language model's own forward. In turns in one process; times are CPU seconds of one thread, so that another
process on the machine changes little. A share is plain's time divided by the reader's, median of the rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.common import arguments
from pad_vllm.choices.feature_sums import feature_sums
from pad_vllm.evaluation.win_rates_and_fluency import answer_losses
from pad_vllm.opened_base import base_folder, default_device, default_dtype
from pad_vllm.persrm import PersRM
from pad_vllm.training.data.prompt_groups import PREFIX_LENGTHS, PromptGroup
from pad_vllm.training.distillation.prompted_teacher import final_hidden_states
from pad_vllm.training.objective.fork_cache import compute_responses
from pad_vllm.training.objective.training_model import load_backbone

Sequences = Sequence[tuple[list[int], list[int]]]
_BATCH = 16


def make_sequences(count: int, vocabulary: int, seed: int = 0) -> Sequences:
    """Prompts of 10 to 60 tokens and answers of 5 to 80, by random token ids."""
    rng = random.Random(seed)
    lengths = [(rng.randint(10, 60), rng.randint(5, 80)) for _ in range(count)]
    tokens = range(5, vocabulary)
    return [(rng.choices(tokens, k=a), rng.choices(tokens, k=b)) for a, b in lengths]


def batches(sequences: Sequences) -> list[Tensor]:
    """[16, T] padded token ids but for the last of each, by length."""
    rows = sorted((torch.tensor([*a, *b][:-1]) for a, b in sequences), key=len)
    return [
        pad_sequence(rows[start : start + _BATCH], batch_first=True)
        for start in range(0, len(rows), _BATCH)
    ]


def groups_of(sequences: Sequences) -> list[PromptGroup]:
    """A group of one answer for each sequence."""
    scores = torch.zeros(1, len(PREFIX_LENGTHS) + 1, 1)
    return [
        PromptGroup(str(n), "random", prompt, [answer], scores, (None,), ())
        for n, (prompt, answer) in enumerate(sequences)
    ]


def readers(
    backbone: Any, trunk: PersRM, heads: PersRM, sequences: Sequences
) -> dict[str, Callable[[], object]]:
    """Name -> what reads all sequences once.

    Args:
        backbone: of both models; plain forwards run it with its LoRA off.
        trunk: with a fork three quarters up.
        heads: heads only.
        sequences: prompts and answers.
    """
    padded, groups, pairs = batches(sequences), groups_of(sequences), list(sequences)
    padded = [ids.to(heads.head_A.device) for ids in padded]
    return {
        "plain": lambda: [backbone.base_model(input_ids=ids, use_cache=False) for ids in padded],
        "logits": lambda: [backbone(input_ids=ids, use_cache=False) for ids in padded],
        "fork cache, heads only": lambda: compute_responses(heads, groups, 20),
        "fork cache, trunk": lambda: compute_responses(trunk, groups, 20),
        "teacher": lambda: final_hidden_states(heads, pairs),
        "perplexities": lambda: answer_losses(backbone, pairs),
        "features, heads only": lambda: feature_sums(heads, pairs),
    }


@torch.no_grad()
def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Reader -> CPU seconds of each round; one round before is not timed."""
    device = default_device()
    folder, dtype = base_folder(args.base), default_dtype(device)
    # Two copies: LoRA modules cost time even where they are off.
    plain, forked = (load_backbone(folder, dtype, device) for _ in range(2))
    layers = plain.config.num_hidden_layers
    heads = PersRM(plain, fork_layer=layers, dimensions=("a", "b", "c"), head_rank=128)
    trunk = PersRM(forked, fork_layer=layers - max(round(layers * 0.27), 1), dimensions=("a",))
    sequences = make_sequences(args.sequences, plain.config.vocab_size)
    found: dict[str, list[float]] = {}
    with trunk.adapter_off():
        every = readers(plain, trunk, heads, sequences)
        for number in range(args.rounds + 1):
            for name, read in every.items():
                start = time.process_time()
                read()
                if number:
                    found.setdefault(name, []).append(time.process_time() - start)
                print(number, name, round(time.process_time() - start, 2), flush=True)
    return found


def result_rows(seconds: Mapping[str, Sequence[float]], tokens: int) -> list[dict[str, Any]]:
    """A row for each reader; "share" is of the plain forward's speed, "of_logits" of that with logits."""
    rows = []
    for name, times in seconds.items():
        shares = {
            key: statistics.median(a / b for a, b in zip(seconds[other], times, strict=True))
            for key, other in (("share", "plain"), ("of_logits", "logits"))
        }
        rows.append(
            {
                "reader": name,
                "tokens_per_second": round(tokens / statistics.median(times)),
                **{key: round(share, 2) for key, share in shares.items()},
                "seconds": [round(one, 3) for one in times],
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown, a line a reader."""
    lines = [
        "| reader | tokens/s | of plain's speed | of logits' speed |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        shares = f"{row['share']:.2f} | {row['of_logits']:.2f}"
        lines.append(f"| {row['reader']} | {row['tokens_per_second']:,} | {shares} |")
    return lines


def main() -> None:
    """See the module's docstring."""
    parser = arguments.make_parser(__doc__, adapter=None)
    parser.add_argument("--sequences", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    seconds = measure(args)
    sequences = make_sequences(args.sequences, 1000)
    tokens = sum(len(prompt) + len(answer) - 1 for prompt, answer in sequences)
    rows = result_rows(seconds, tokens)
    result = {
        "command": arguments.command_line(),
        "base": args.base,
        "dtype": default_dtype(default_device()),
        "tokens": tokens,
        "rows": rows,
        "table": table(rows),
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
