"""What do distinct preferences cost, and long prompts with and without a warm prefix cache?

    python benchmarks/crowd.py --out benchmarks/results/crowd.json

Plain vLLM and PAD live in one process and take turns. Crowd: the same short requests, guided by one
preference, by a hundred and by as many as there are requests; every round brings new preferences, so that
`--requests` times `--rounds` are served in all. Prompts: long ones, read whole ("cold") and asked once more
with other preferences ("warm"), with vLLM's prefix cache on. Times are whole calls of `LLM.generate`,
admission and prefill included; ratios are to plain vLLM, or to one preference, of the same round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import arguments
import speed

from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base

Preference = dict[str, Any]


def preferences(dimensions: Sequence[str], count: int, seed: int) -> list[Preference]:
    """No two alike: weights in [-1, 1]."""
    drawn = random.Random(seed)
    return [
        {"pad_weights": [f"{name}={drawn.uniform(-1, 1):.9f}" for name in dimensions]}
        for _ in range(count)
    ]


def call(llm: Any, prompts: Sequence[list[int]], asked: Sequence[Preference], tokens: int) -> float:
    """Seconds of one call; asked: a preference a prompt, taken in turn, or none."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            extra_args=asked[number % len(asked)] if asked else None,
        )
        for number in range(len(prompts))
    ]
    begin = time.perf_counter()
    llm.generate([{"prompt_token_ids": row} for row in prompts], params, use_tqdm=False)
    return time.perf_counter() - begin


def crowd(plain: Any, pad: Any, dimensions: Sequence[str], args: argparse.Namespace) -> list[dict]:
    """One record a round."""
    prompts = speed.prompt_rows(args.requests, args.prompt)
    records = []
    for turn in range(args.rounds + 1):  # the first warms up
        many = preferences(dimensions, args.requests, turn)
        found = {
            "plain": call(plain, prompts, (), args.tokens),
            "one": call(pad, prompts, many[:1], args.tokens),
            "hundred": call(pad, prompts, many[:100], args.tokens),
            "all": call(pad, prompts, many, args.tokens),
        }
        if turn:
            records.append(found)
    return records


def long_prompts(
    plain: Any, pad: Any, dimensions: Sequence[str], args: argparse.Namespace
) -> list[dict]:
    """One record a round; its prompts are new."""
    records = []
    for turn in range(args.rounds + 1):
        drawn = random.Random(turn)
        prompts = [
            [drawn.randrange(100, 1000) for _ in range(args.long_prompt)] for _ in range(args.long)
        ]
        many = preferences(dimensions, 2 * args.long, turn)
        found = {
            "plain, cold": call(plain, prompts, (), args.tokens),
            "PAD, cold": call(pad, prompts, many[: args.long], args.tokens),
            "plain, warm": call(plain, prompts, (), args.tokens),
            "PAD, warm": call(pad, prompts, many[args.long :], args.tokens),
        }
        if turn:
            records.append(found)
    return records


def ratio(records: Sequence[dict], name: str, to: str) -> dict[str, float]:
    """Median, smallest and largest over the rounds."""
    found = [record[name] / record[to] for record in records]
    return {
        "ratio": round(statistics.median(found), 3),
        "least": round(min(found), 3),
        "most": round(max(found), 3),
    }


def rows(crowds: Sequence[dict], longs: Sequence[dict], args: argparse.Namespace) -> list[dict]:
    served = args.requests * args.rounds
    compared = [
        ("one preference", crowds, "one", "plain"),
        ("100 preferences", crowds, "hundred", "one"),
        (f"{served:,} preferences", crowds, "all", "one"),
        ("long prompts, cold", longs, "PAD, cold", "plain, cold"),
        ("long prompts, warm", longs, "PAD, warm", "plain, warm"),
    ]
    return [
        {"what": what, "to": "one preference" if to == "one" else "plain vLLM"}
        | {"seconds": round(statistics.median(r[name] for r in records), 3)}
        | ratio(records, name, to)
        for what, records, name, to in compared
    ]


def table(found: Sequence[dict]) -> list[str]:
    lines = ["| guided by | seconds a round | ratio | to |", "| --- | ---: | --- | --- |"]
    lines += [
        f"| {r['what']} | {r['seconds']:.2f} | {r['ratio']:.3f}x ({r['least']:.2f} to {r['most']:.2f}) "
        f"| {r['to']} |"
        for r in found
    ]
    return lines


def parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="of a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=8, help="tokens of a short prompt")
    parser.add_argument("--tokens", type=int, default=4, help="of an answer")
    parser.add_argument("--long", type=int, default=8, help="long prompts of a round")
    parser.add_argument("--long-prompt", type=int, default=1000, help="their tokens")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--load-format", default="auto", help="`dummy` times a bare config.json")
    parser.add_argument("--gpu-memory", type=float, default=0.4, help="share for each engine")
    parser.add_argument("--eager", action="store_true")
    return parser.parse_args()


def main() -> None:
    args = parse()
    base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
    config = read_config(adapter)
    sizes = {
        "max_model_len": max(args.long_prompt, args.prompt) + args.tokens + 8,
        "max_num_seqs": args.batch,
        "enable_prefix_caching": True,
    }
    plain, pad = (speed.start(base, args, one, **sizes) for one in (None, adapter))
    crowds = crowd(plain, pad, config.dimensions, args)
    longs = long_prompts(plain, pad, config.dimensions, args)
    found = rows(crowds, longs, args)
    arguments.tell(
        args,
        {
            "command": arguments.command(),
            "backbone": config.backbone.name,
            "fork_layer": config.fork_layer,
            "dtype": args.dtype,
            "compiled": not args.eager,
            "versions": speed.versions(),
            "rows": found,
            "table": table(found),
            "records": {"crowd": crowds, "long prompts": longs},
        },
    )


if __name__ == "__main__":
    main()
