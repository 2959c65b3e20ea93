"""What do distinct preferences cost, and long prompts with and without a warm prefix cache?

    python -m benchmarks.speed.distinct_preferences --out benchmarks/results/crowd.json

Plain vLLM and PAD live in one process and take turns. Short requests: guided by one preference, by a hundred
and by as many as there are requests; every round brings new preferences, so that `--requests` times
`--rounds` are served in all. Long prompts: read whole ("cold") and sent once more with other preferences
("warm"), with vLLM's prefix cache on. Times are whole calls of `LLM.generate`, admission and prefill
included; ratios are to plain vLLM, or to one preference, of the same round.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import arguments, timed_engines
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base

Preference = dict[str, Any]
"""A request's extra_args."""

RoundSeconds = dict[str, float]
"""Kind of call -> seconds, of one round."""


def random_preferences(dimensions: Sequence[str], count: int, seed: int) -> list[Preference]:
    """Preferences of which no two are alike.

    Args:
        dimensions: Each gets a weight in [-1, 1].
        count: How many preferences.
        seed: Of the weights.
    """
    source = random.Random(seed)
    return [
        {"pad_weights": [f"{name}={source.uniform(-1, 1):.9f}" for name in dimensions]}
        for _ in range(count)
    ]


def call_seconds(
    llm: Any, prompts: Sequence[list[int]], preferences: Sequence[Preference], tokens: int
) -> float:
    """Seconds of one call of an engine.

    Args:
        llm: The engine.
        prompts: Token ids.
        preferences: Taken in turn by the prompts; none for unguided requests.
        tokens: Length of every answer.
    """
    from vllm import SamplingParams

    params = [
        SamplingParams(
            temperature=0,
            max_tokens=tokens,
            ignore_eos=True,
            extra_args=preferences[number % len(preferences)] if preferences else None,
        )
        for number in range(len(prompts))
    ]
    start = time.perf_counter()
    llm.generate([{"prompt_token_ids": row} for row in prompts], params, use_tqdm=False)
    return time.perf_counter() - start


def time_short_prompts(
    plain: Any, pad: Any, dimensions: Sequence[str], args: argparse.Namespace
) -> list[RoundSeconds]:
    """Time the short requests under one, a hundred and all different preferences.

    Args:
        plain: The engine without PAD.
        pad: The engine with PAD.
        dimensions: Of the preferences.
        args: The command line.

    Returns:
        One record a round.
    """
    prompts = timed_engines.prompt_rows(args.requests, args.prompt)
    records = []
    for number in range(args.rounds + 1):  # the first round warms up
        preferences = random_preferences(dimensions, args.requests, number)
        record = {
            "plain": call_seconds(plain, prompts, (), args.tokens),
            "one": call_seconds(pad, prompts, preferences[:1], args.tokens),
            "hundred": call_seconds(pad, prompts, preferences[:100], args.tokens),
            "all": call_seconds(pad, prompts, preferences, args.tokens),
        }
        if number:
            records.append(record)
    return records


def time_long_prompts(
    plain: Any, pad: Any, dimensions: Sequence[str], args: argparse.Namespace
) -> list[RoundSeconds]:
    """Time long prompts, new in each round, without and with their prefix in the cache.

    Args:
        plain: The engine without PAD.
        pad: The engine with PAD.
        dimensions: Of the preferences.
        args: The command line.

    Returns:
        One record a round.
    """
    records = []
    for number in range(args.rounds + 1):  # the first round warms up
        source = random.Random(number)
        prompts = [
            [source.randrange(100, 1000) for _ in range(args.long_prompt)] for _ in range(args.long)
        ]
        preferences = random_preferences(dimensions, 2 * args.long, number)
        record = {
            "plain, cold": call_seconds(plain, prompts, (), args.tokens),
            "PAD, cold": call_seconds(pad, prompts, preferences[: args.long], args.tokens),
            "plain, warm": call_seconds(plain, prompts, (), args.tokens),
            "PAD, warm": call_seconds(pad, prompts, preferences[args.long :], args.tokens),
        }
        if number:
            records.append(record)
    return records


def ratio(records: Sequence[RoundSeconds], kind: str, to: str) -> dict[str, float]:
    """Median, smallest and largest ratio over the rounds.

    Args:
        records: One a round.
        kind: The kind of call.
        to: The kind that it is compared with, in the same round.
    """
    ratios = [record[kind] / record[to] for record in records]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "least": round(min(ratios), 3),
        "most": round(max(ratios), 3),
    }


def rows(
    short_records: Sequence[RoundSeconds],
    long_records: Sequence[RoundSeconds],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The result's rows, one a comparison.

    Args:
        short_records: Of `time_short_prompts`.
        long_records: Of `time_long_prompts`.
        args: With --requests and --rounds.
    """
    served = args.requests * args.rounds
    comparisons = [
        ("one preference", short_records, "one", "plain"),
        ("100 preferences", short_records, "hundred", "one"),
        (f"{served:,} preferences", short_records, "all", "one"),
        ("long prompts, cold", long_records, "PAD, cold", "plain, cold"),
        ("long prompts, warm", long_records, "PAD, warm", "plain, warm"),
    ]
    return [
        {"what": what, "to": "one preference" if to == "one" else "plain vLLM"}
        | {"seconds": round(statistics.median(r[kind] for r in records), 3)}
        | ratio(records, kind, to)
        for what, records, kind, to in comparisons
    ]


def table(result_rows: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown, a line a comparison."""
    lines = ["| guided by | seconds a round | ratio | to |", "| --- | ---: | --- | --- |"]
    lines += [
        f"| {r['what']} | {r['seconds']:.2f} | {r['ratio']:.3f}x ({r['least']:.2f} to {r['most']:.2f}) "
        f"| {r['to']} |"
        for r in result_rows
    ]
    return lines


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="of a round")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=8, help="tokens of a short prompt")
    parser.add_argument("--tokens", type=int, default=4, help="of an answer")
    parser.add_argument("--long", type=int, default=8, help="long prompts of a round")
    parser.add_argument("--long-prompt", type=int, default=1000, help="their tokens")
    parser.add_argument("--batch", type=int, default=32)
    timed_engines.add_engine_options(parser, dtype="bfloat16", gpu_memory=0.4)
    parser.add_argument("--eager", action="store_true")
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
    config = read_config(adapter)
    sizes = {
        "max_model_len": max(args.long_prompt, args.prompt) + args.tokens + 8,
        "max_num_seqs": args.batch,
        "enable_prefix_caching": True,
    }
    plain = timed_engines.start_engine(base, args, None, **sizes)
    pad = timed_engines.start_engine(base, args, adapter, **sizes)
    short_records = time_short_prompts(plain, pad, config.dimensions, args)
    long_records = time_long_prompts(plain, pad, config.dimensions, args)
    result_rows = rows(short_records, long_records, args)
    result = {
        "command": arguments.command_line(),
        "backbone": config.backbone.name,
        "fork_layer": config.fork_layer,
        "dtype": args.dtype,
        "compiled": not args.eager,
        "versions": timed_engines.machine_and_versions(),
        "rows": result_rows,
        "table": table(result_rows),
        "records": {"crowd": short_records, "long prompts": long_records},
    }
    arguments.print_and_write(args, result)


if __name__ == "__main__":
    main()
