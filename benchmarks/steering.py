"""Does guidance steer, and is the text still text? Win rates over the unguided answers.

    python benchmarks/steering.py --prompts PROMPTS.json --betas 0.5 1 1.5 --out steering.json

PROMPTS.json is a list of {"prompt": text}: the paper's are the 50 Koala prompts of P-Soups. Greedy,
100 tokens, one mixed batch through vLLM. Rows: each dimension alone and its opposite at each beta,
mixes of two, and plain preference prompting. Prints a table, then writes JSON.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine goes when it is let go

import arguments

from pad_vllm.adapter.manifest import read_config
from pad_vllm.demo.names import resolve_adapter, resolve_base
from pad_vllm.evaluation.measures import perplexity, repeated_ngrams, token_losses, win_rate
from pad_vllm.evaluation.scorers import SCORERS, score
from pad_vllm.text.chat import chat_ids

PROMPTED = {
    "positive": "Be positive, warm and encouraging.",
    "brief": "Answer briefly.",
    "simple": "Use short, simple words and short sentences.",
    "personal": "Speak of yourself and to me, as in I, you and we.",
    "harmless": "Do not say anything harmful.",
}
MOST_PERPLEXITY = 1.5  # times the unguided answers'
MOST_REPETITION = 0.05  # above the unguided answers'


@dataclass
class Condition:
    """One way to answer all prompts."""

    name: str
    weights: dict[str, float]
    beta: float = 0.0
    instruction: str = ""

    def extra_args(self, top_k: int | None) -> dict[str, Any] | None:
        if not self.weights:
            return None
        extra: dict[str, Any] = {
            "pad_weights": [f"{name}={value}" for name, value in self.weights.items()],
            "pad_beta": self.beta,
        }
        return extra if top_k is None else {**extra, "pad_top_k": top_k}


def conditions(
    dimensions: tuple[str, ...], betas: list[float], pair_betas: list[float]
) -> list[Condition]:
    """Every dimension and its opposite at `betas`, pairs of those with a scorer at `pair_betas`."""
    found = [Condition("unguided", {})]
    for beta, name in itertools.product(betas, dimensions):
        found.append(Condition(f"+{name}", {name: 1}, beta))
        found.append(Condition(f"-{name}", {name: -1}, beta))
    scored = scored_of(dimensions)
    for beta, pair in itertools.product(pair_betas, itertools.combinations(scored, 2)):
        found.append(Condition("+" + "+".join(pair), dict.fromkeys(pair, 1.0), beta))
    prompted = [name for name in dimensions if name in PROMPTED]
    found += [Condition(f"prompt {name}", {}, instruction=PROMPTED[name]) for name in prompted]
    return found


def scored_of(dimensions: tuple[str, ...]) -> tuple[str, ...]:
    """Those that have a scorer; what people preferred can be steered, and here not be measured."""
    return tuple(name for name in dimensions if name in SCORERS)


def answer(
    base: str, adapter: str, prompts: list[str], rows: list[Condition], args: argparse.Namespace
) -> list[list[Any]]:
    """vLLM's completions, [condition][prompt], all requests in one batch."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        base,
        load_format="pad",
        logits_processors=["pad_vllm:PADLogitsProcessor"],
        additional_config={"pad": {"adapter": adapter}},
        max_model_len=1024,
        max_num_seqs=64,
    )
    chats, params = [], []
    for row in rows:
        for prompt in prompts:
            text = f"{prompt}\n\n{row.instruction}" if row.instruction else prompt
            chats.append([{"role": "user", "content": text}])
            params.append(
                SamplingParams(
                    temperature=0, max_tokens=args.max_tokens, extra_args=row.extra_args(args.top_k)
                )
            )
    outputs = [output.outputs[0] for output in llm.chat(chats, params)]
    size = len(prompts)
    del llm  # its memory is needed for the perplexities
    gc.collect()
    return [outputs[start : start + size] for start in range(0, len(outputs), size)]


def losses(base: str, prompts: list[str], answers: list[list[Any]]) -> list[float]:
    """Perplexity of each condition's answers under the base, after the plain prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = [chat_ids(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    pairs = [
        (prompt, list(one.token_ids))
        for row in answers
        for prompt, one in zip(ids, row, strict=True)
    ]
    found = token_losses(model, pairs)
    size = len(prompts)
    return [perplexity(found[start : start + size]) for start in range(0, len(found), size)]


def measure(
    rows: list[Condition],
    answers: list[list[Any]],
    perplexities: list[float],
    dimensions: tuple[str, ...],
) -> list[dict[str, Any]]:
    """One record a condition: win rate and mean score a dimension, perplexity ratio, repetition."""
    texts = [[one.text for one in row] for row in answers]
    scores = [[score(text, dimensions) for text in row] for row in texts]
    repeated = [sum(map(repeated_ngrams, row)) / len(row) for row in texts]
    records = []
    for index, row in enumerate(rows):
        ratio = perplexities[index] / perplexities[0]
        added = repeated[index] - repeated[0]
        records.append(
            {
                "name": row.name,
                "weights": row.weights,
                "beta": row.beta,
                "win_rate": {
                    name: round(
                        win_rate([s[d] for s in scores[index]], [s[d] for s in scores[0]]), 4
                    )
                    for d, name in enumerate(dimensions)
                },
                "mean_score": {
                    name: round(sum(s[d] for s in scores[index]) / len(scores[index]), 4)
                    for d, name in enumerate(dimensions)
                },
                "perplexity": round(perplexities[index], 3),
                "perplexity_ratio": round(ratio, 3),
                "repeated_4grams": round(repeated[index], 4),
                "repetition_added": round(added, 4),
                "fluent": ratio <= MOST_PERPLEXITY and added <= MOST_REPETITION,
            }
        )
    return records


def table(records: list[dict[str, Any]], dimensions: tuple[str, ...]) -> list[str]:
    """Markdown; a condition that breaks a fluency limit is marked."""
    lines = [
        "| condition | beta | " + " | ".join(f"{d} wins" for d in dimensions) + " | perplexity | "
        "repeated 4-grams | |",
        "| --- | --- |" + " --- |" * (len(dimensions) + 3),
    ]
    for r in records:
        wins = " | ".join(f"{r['win_rate'][d]:.0%}" for d in dimensions)
        lines.append(
            f"| {r['name']} | {r['beta']:g} | {wins} | {r['perplexity_ratio']:.2f}x | "
            f"{r['repetition_added'] * 100:+.1f} points | {'' if r['fluent'] else 'not fluent'} |"
        )
    return lines


def main() -> None:
    parser = arguments.parser(__doc__)
    arguments.add_answers(parser, top_k=None, betas=(0.5, 1.0, 1.5))
    parser.add_argument("--pair-betas", type=float, nargs="+", default=[1.0])
    args = parser.parse_args()
    base, adapter = str(resolve_base(args.base)), str(resolve_adapter(args.adapter))
    dimensions = read_config(adapter).dimensions
    prompts = arguments.read_prompts(args.prompts)
    rows = conditions(dimensions, args.betas, args.pair_betas)
    answers = answer(base, adapter, prompts, rows, args)
    measured = scored_of(dimensions)
    records = measure(rows, answers, losses(base, prompts, answers), measured)
    lines = table(records, measured)
    print("\n".join(lines))
    result = {
        "command": arguments.command(),
        "prompts": len(prompts),
        "records": records,
        "table": lines,
    }
    arguments.report(args.out, result)
    if args.texts:
        texts = {
            r.name + f"@{r.beta:g}": [one.text for one in a]
            for r, a in zip(rows, answers, strict=True)
        }
        args.texts.write_text(json.dumps(texts, indent=1))


if __name__ == "__main__":
    main()
