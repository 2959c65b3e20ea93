"""What does a reward model of its own cost? All in one run, alternated, on one machine.

    python benchmarks/cost.py --out benchmarks/results/cost.json

Plain vLLM and the engines named by --engines take turns on the same batches, every row guided; beside them
the reward model's own step (the scorer of `resident` alone, same rows), a KV-cached Transformers loop of two
forwards, and the loop as the paper publishes it: full recomputation each step, batch 1. A step's time is
(time for N + 1 tokens - time for 1) / N. The base is the reward model's own backbone, so that every contender
says the same. Ray's actor is a process of its own, here on the second core; the trace shows what of it
overlaps with the base's forward. Prints tables, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import arguments
import torch
from loops import cached_loop, paper_loop
from speed import prompt_rows, seconds, step_time, versions

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest
from pad_vllm.persrm import PersRM

BETA, TOP_K = 1.0, 10


def start(base: str, adapter: str, engine: str, args: argparse.Namespace) -> Any:
    from vllm import LLM

    more: dict[str, Any] = {}
    if engine != "plain":
        pad: dict[str, Any] = {"adapter": adapter, "engine": engine}
        if engine != "shared":
            pad |= {"backbone": base, "cache_gib": 0.5}
        if engine == "ray":
            pad |= {"ray_deadline_s": 60.0}
        more = {
            "load_format": "pad",
            "logits_processors": ["pad_vllm:PADLogitsProcessor"],
            "additional_config": {"pad": pad},
        }
    return LLM(
        base,
        max_model_len=args.prompt + 160,
        max_num_seqs=max(*args.batches, 8),
        enable_prefix_caching=False,
        dtype="bfloat16",
        enforce_eager=args.eager,
        seed=0,
        **more,
    )


def persrm_step(scorer: Any, batch: int, w: tuple[float, ...], args: argparse.Namespace) -> float:
    """The reward model's part alone: the same rows, one token longer at each step."""
    rows = prompt_rows(batch, args.prompt)

    def asks() -> list[ScoringRequest]:
        return [
            ScoringRequest(
                -1 - n, list(row), w, [(len(row), (token,)) for token in range(100, 100 + TOP_K)]
            )
            for n, row in enumerate(rows)
        ]

    scorer(asks())
    begin = time.perf_counter()
    for step in range(args.tokens):
        for row in rows:
            row.append(200 + step)
        scorer(asks())
    found = (time.perf_counter() - begin) / args.tokens
    scorer([])
    return found


def loop_step(model: PersRM, batch: int, w: torch.Tensor, args: argparse.Namespace) -> float:
    """A step of the KV-cached Transformers loop."""
    rows = prompt_rows(batch, args.prompt)
    shared = {"beta": BETA, "top_k": TOP_K, "shared_backbone": True}
    times = []
    for tokens in (1, args.tokens + 1):
        begin = time.perf_counter()
        cached_loop(model.backbone, model, rows, w, max_new_tokens=tokens, **shared)
        times.append(time.perf_counter() - begin)
    return (times[1] - times[0]) / args.tokens


def model_of(llm: Any) -> Any:
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()


def compare(
    llms: dict[str, Any], twin: PersRM, args: argparse.Namespace, extra: dict[str, Any], w: Any
) -> list[dict[str, Any]]:
    records = []
    scorer = model_of(llms["resident"]).pad_rewards.scorer if "resident" in llms else None
    for batch in args.batches:
        times: dict[str, list[float]] = {}
        for turn in range(args.rounds + 1):  # the first warms up
            found = {
                name: step_time(llm, batch, args, extra if name != "plain" else None)
                for name, llm in llms.items()
            }
            if scorer is not None:
                found["persrm"] = persrm_step(scorer, batch, w, args)
            if turn <= 2:
                found["loop"] = loop_step(twin, batch, torch.tensor(w), args)
            for name, value in found.items() if turn else ():
                times.setdefault(name, []).append(value)
        plain = times["plain"]
        record: dict[str, Any] = {"batch": batch}
        for name, values in times.items():
            record[f"{name}_ms"] = round(statistics.median(values) * 1e3, 2)
            ratios = [b / a for a, b in zip(plain, values, strict=False)]
            record[f"{name}_ratio"] = round(statistics.median(ratios), 3)
            record[f"{name}_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
        if scorer is not None:
            record["resident_over_sum"] = round(
                statistics.median(
                    r / (p + m)
                    for p, m, r in zip(plain, times["persrm"], times["resident"], strict=True)
                ),
                3,
            )
        print(json.dumps(record), flush=True)
        records.append(record)
    return records


def paper(
    llms: dict[str, Any], twin: PersRM, w: Any, extra: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    """128 new tokens for 8 prompts: every engine at once, the paper's loop one after the other."""
    ours = {}
    for name, llm in llms.items():
        given = extra if name != "plain" else None
        seconds(llm, 8, 4, args.prompt, given)
        ours[name] = min(seconds(llm, 8, args.paper_tokens, args.prompt, given) for _ in range(2))
    theirs = []
    for row in prompt_rows(8, args.prompt)[: args.paper_prompts]:
        begin = time.perf_counter()
        paper_loop(
            twin.backbone,
            None,
            twin,
            None,
            row,
            None,
            torch.tensor(w),
            beta=BETA,
            top_k=TOP_K,
            max_new_tokens=args.paper_tokens,
            shared_backbone=True,
        )
        theirs.append(time.perf_counter() - begin)
    one = statistics.mean(theirs)
    return {
        "new_tokens": args.paper_tokens,
        "batch": 8,
        "seconds": {name: round(value, 2) for name, value in ours.items()},
        "paper_s_a_prompt": round(one, 2),
        "paper_prompts_timed": len(theirs),
        "times_as_fast": {name: round(8 * one / value, 1) for name, value in ours.items()},
    }


def trace(llm: Any, args: argparse.Namespace, extra: dict[str, Any], out: Path) -> dict[str, Any]:
    """A decoding stretch of the ray engine as a Chrome trace, and how much of the actor overlaps."""
    from vllm import envs

    model = model_of(llm)
    rewards, marks = model.pad_rewards, []
    # The last thing before a forward: V1 is told in it what is fed, V2 before it what was said last.
    owner, name = (
        (rewards, "before_forward_v2")
        if envs.VLLM_USE_V2_MODEL_RUNNER
        else (model, "pad_on_forward_start")
    )
    begin, keep, answer = getattr(owner, name), rewards.receive, rewards.rewards

    def note(name: str, call: Any) -> Any:
        def noted(*given: Any) -> Any:
            at = time.time()
            found = call(*given)
            marks.append((name, at, time.time()))
            return found

        return noted

    setattr(owner, name, note("begin", begin))
    rewards.receive = note("keep", keep)
    rewards.rewards = note("rewards", answer)
    seconds(llm, 8, 24, args.prompt, extra)
    setattr(owner, name, begin)
    rewards.receive, rewards.rewards = keep, answer
    busy = rewards.scorer.busy()[0]
    steps = [
        (a[2], b[1], c[2])
        for a, b, c in zip(marks, marks[1:], marks[2:], strict=False)
        if (a[0], b[0], c[0]) == ("begin", "keep", "rewards")
    ][4:-1]
    events, inside, worked = [], 0.0, 0.0
    for forward, logits, collected in steps:
        events.append(_event("base forward", "vLLM", forward, logits))
        events.append(_event("collect rewards", "vLLM", logits, collected))
    first, last = steps[0][0], steps[-1][2]
    for at, end in busy:
        if first <= at <= last:
            events.append(_event("reward model", "Ray actor", at, end))
            worked += end - at
            inside += sum(max(0.0, min(end, b) - max(at, a)) for a, b, _ in steps)
    out.write_text(json.dumps({"traceEvents": events}) + "\n", "utf-8")
    return {
        "steps": len(steps),
        "base_forward_ms": round(1e3 * sum(b - a for a, b, _ in steps) / len(steps), 2),
        "reward_model_ms": round(1e3 * worked / len(steps), 2),
        "from_forward_to_rewards_ms": round(1e3 * sum(c - a for a, _, c in steps) / len(steps), 2),
        "of_it_while_the_base_ran": round(inside / worked, 3) if worked else 0.0,
    }


def _event(name: str, process: str, begin: float, end: float) -> dict[str, Any]:
    micro = {"ts": round(begin * 1e6), "dur": round((end - begin) * 1e6)}
    return {"name": name, "ph": "X", "pid": process, "tid": 0, **micro}


def table(records: list[dict[str, Any]]) -> list[str]:
    names = [name.removesuffix("_ms") for name in records[0] if name.endswith("_ms")]
    lines = [
        f"| batch | {' | '.join(names)} | loop / shared | resident / (plain + persrm) |",
        "| ---: " + "| --- " * len(names) + "| ---: | ---: |",
    ]
    for r in records:
        cells = [f"{r[f'{n}_ms']:.1f} ms ({r[f'{n}_ratio']:.2f}x)" for n in names]
        over = f"{r['loop_ms'] / r['shared_ms']:.1f}x" if "shared" in names else ""
        added = f"{r['resident_over_sum']:.2f}" if "resident_over_sum" in r else ""
        lines.append(f"| {r['batch']} | {' | '.join(cells)} | {over} | {added} |")
    return lines


def parse() -> argparse.Namespace:
    parser = arguments.parser(__doc__, out="benchmarks/results/cost.json")
    arguments.add_timing(parser, batches=(1, 4, 16), tokens=32, rounds=3)
    parser.add_argument("--paper-tokens", type=int, default=128)
    parser.add_argument("--paper-prompts", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["shared", "resident", "ray"])
    parser.add_argument("--trace", type=Path, default=Path("benchmarks/results/overlap.trace.json"))
    return parser.parse_args()


def main() -> None:
    args = parse()
    base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
    config = read_config(adapter)
    w = tuple(1.0 if n == 0 else 0.0 for n in range(len(config.dimensions)))
    extra = {"pad_weights": f"{config.dimensions[0]}=1", "pad_beta": BETA, "pad_top_k": TOP_K}
    llms = {name: start(base, adapter, name, args) for name in ("plain", *args.engines)}
    from transformers import AutoModelForCausalLM

    backbone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    twin = PersRM.from_adapter(backbone, load_adapter(adapter))
    with torch.inference_mode():
        records = compare(llms, twin, args, extra, w)
        against = paper(llms, twin, w, extra, args)
    result = {
        "command": arguments.command(),
        "backbone": config.backbone.name,
        "fork_layer": config.fork_layer,
        "dtype": "bfloat16",
        "compiled": not args.eager,
        "versions": versions(),
        "records": records,
        "table": table(records),
        "paper_loop": against,
    }
    if "ray" in llms:
        result["overlap"] = trace(llms["ray"], args, extra, args.trace)
    print("\n".join(result["table"]))
    print(json.dumps(result))
    arguments.report(args.out, result)


if __name__ == "__main__":
    main()
