"""What does a reward model of its own cost? Step times of all engines and of Transformers' loops, alternated.

    python -m benchmarks.speed.engine_step_times --out benchmarks/results/cost.json

Plain vLLM and the engines named by --engines take turns on the same batches, every row guided; beside them
the reward model's own step (the scorer of `resident` without vLLM, same rows), a KV-cached Transformers loop
of two forwards, and the loop as the paper publishes it: full recomputation each step, batch 1. A step's time
is (time for N + 1 tokens - time for 1) / N. The base is the reward model's own backbone, so that all of them
generate the same tokens. Ray's actor is a process of its own, here on the second core; the trace shows how
much of its work overlaps with the base's forward. Prints tables, then one JSON line.
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

import torch

from benchmarks.common import arguments, timed_engines
from benchmarks.common.timed_engines import generation_seconds, prompt_rows
from benchmarks.paper.transformers_loops import cached_loop, paper_loop
from benchmarks.speed.ray_overlap_trace import trace_ray_overlap
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.manifest import read_config
from pad_vllm.catalog.name_resolution import resolve_adapter, resolve_base
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest
from pad_vllm.persrm import PersRM

BETA, TOP_K = 1.0, 10
ANSWERS = 8  # prompts of whole answers


def start_engine(base: str, adapter: str, engine: str, args: argparse.Namespace) -> Any:
    """A vllm.LLM in this process.

    Args:
        base: Folder of the base, and of the reward model's backbone.
        adapter: Folder of the adapter.
        engine: "plain", "shared", "resident" or "ray".
        args: The command line.
    """
    from vllm import LLM

    pad_arguments: dict[str, Any] = {}
    if engine != "plain":
        settings: dict[str, Any] = {"adapter": adapter, "engine": engine}
        if engine != "shared":
            settings |= {"backbone": base, "cache_gib": 0.5}
        if engine == "ray":
            settings |= {"ray_deadline_s": 60.0}
        pad_arguments = {
            "load_format": "pad",
            "logits_processors": ["pad_vllm:PADLogitsProcessor"],
            "additional_config": {"pad": settings},
        }
    return LLM(
        base,
        max_model_len=args.prompt + 160,
        max_num_seqs=max(*args.batches, 8),
        enable_prefix_caching=False,
        dtype="bfloat16",
        enforce_eager=args.eager,
        seed=0,
        **pad_arguments,
    )


def scorer_step_seconds(
    scorer: Any, batch: int, w: tuple[float, ...], args: argparse.Namespace
) -> float:
    """Seconds a step of the reward model without vLLM: the same rows, one token longer at each step.

    Args:
        scorer: Of the `resident` engine.
        batch: Number of rows.
        w: Weights of every row.
        args: With --prompt and --tokens.
    """
    rows = prompt_rows(batch, args.prompt)

    def scoring_requests() -> list[ScoringRequest]:
        return [
            ScoringRequest(
                -1 - n, list(row), w, [(len(row), (token,)) for token in range(100, 100 + TOP_K)]
            )
            for n, row in enumerate(rows)
        ]

    scorer(scoring_requests())
    start = time.perf_counter()
    for step in range(args.tokens):
        for row in rows:
            row.append(200 + step)
        scorer(scoring_requests())
    seconds = (time.perf_counter() - start) / args.tokens
    scorer([])
    return seconds


def loop_step_seconds(
    model: PersRM, batch: int, w: torch.Tensor, args: argparse.Namespace
) -> float:
    """Seconds a step of the KV-cached Transformers loop.

    Args:
        model: The reward model; its backbone is the base.
        batch: Number of rows.
        w: [D] weights.
        args: With --prompt and --tokens.
    """
    rows = prompt_rows(batch, args.prompt)
    times = []
    for tokens in (1, args.tokens + 1):
        start = time.perf_counter()
        cached_loop(
            model.backbone,
            model,
            rows,
            w,
            beta=BETA,
            top_k=TOP_K,
            max_new_tokens=tokens,
            shared_backbone=True,
        )
        times.append(time.perf_counter() - start)
    return (times[1] - times[0]) / args.tokens


def served_model(llm: Any) -> Any:
    """The torch module that an engine of this process serves."""
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model()


def time_in_turns(
    llms: dict[str, Any],
    model: PersRM,
    args: argparse.Namespace,
    guidance: dict[str, Any],
    w: tuple[float, ...],
) -> list[dict[str, Any]]:
    """Step times of everything, in alternated rounds.

    Args:
        llms: Engines by name, "plain" first.
        model: The reward model in Transformers.
        args: The command line.
        guidance: extra_args of a guided request.
        w: The same weights as numbers.

    Returns:
        A record a batch size: medians over the rounds, ratios to plain vLLM in the same round.
    """
    records = []
    scorer = served_model(llms["resident"]).pad_rewards.scorer if "resident" in llms else None
    for batch in args.batches:
        times: dict[str, list[float]] = {}
        for number in range(args.rounds + 1):  # the first round warms up
            seconds = {
                name: timed_engines.step_seconds(
                    llm, batch, args, guidance if name != "plain" else None
                )
                for name, llm in llms.items()
            }
            if scorer is not None:
                seconds["persrm"] = scorer_step_seconds(scorer, batch, w, args)
            if number <= 2:
                seconds["loop"] = loop_step_seconds(model, batch, torch.tensor(w), args)
            for name, value in seconds.items() if number else ():
                times.setdefault(name, []).append(value)
        record = _record(batch, times)
        print(json.dumps(record), flush=True)
        records.append(record)
    return records


def _record(batch: int, times: dict[str, list[float]]) -> dict[str, Any]:
    """times: name -> seconds a step, round by round."""
    plain = times["plain"]
    record: dict[str, Any] = {"batch": batch}
    for name, values in times.items():
        record[f"{name}_ms"] = round(statistics.median(values) * 1e3, 2)
        ratios = [b / a for a, b in zip(plain, values, strict=False)]
        record[f"{name}_ratio"] = round(statistics.median(ratios), 3)
        record[f"{name}_spread"] = [round(min(ratios), 3), round(max(ratios), 3)]
    if "persrm" in times:
        ratios_to_sum = [
            resident / (base + persrm)
            for base, persrm, resident in zip(
                plain, times["persrm"], times["resident"], strict=True
            )
        ]
        record["resident_over_sum"] = round(statistics.median(ratios_to_sum), 3)
    return record


def time_whole_answers(
    llms: dict[str, Any],
    model: PersRM,
    args: argparse.Namespace,
    guidance: dict[str, Any],
    w: tuple[float, ...],
) -> dict[str, Any]:
    """Seconds for 8 answers of --paper-tokens: by every engine at once, by the paper's loop one by one.

    Args:
        llms: Engines by name.
        model: The reward model in Transformers.
        args: The command line.
        guidance: extra_args of a guided request.
        w: The same weights as numbers.
    """
    engine_seconds = {}
    for name, llm in llms.items():
        request = guidance if name != "plain" else None
        generation_seconds(llm, ANSWERS, 4, args.prompt, request)
        engine_seconds[name] = min(
            generation_seconds(llm, ANSWERS, args.paper_tokens, args.prompt, request)
            for _ in range(2)
        )
    loop_seconds = []
    for row in prompt_rows(ANSWERS, args.prompt)[: args.paper_prompts]:
        start = time.perf_counter()
        paper_loop(
            model.backbone,
            base_tokenizer=None,
            persrm=model,
            persrm_tokenizer=None,
            prompt_ids=row,
            persrm_prompt_ids=None,
            w=torch.tensor(w),
            beta=BETA,
            top_k=TOP_K,
            max_new_tokens=args.paper_tokens,
            shared_backbone=True,
        )
        loop_seconds.append(time.perf_counter() - start)
    a_prompt = statistics.mean(loop_seconds)
    ratios = {name: round(ANSWERS * a_prompt / s, 1) for name, s in engine_seconds.items()}
    return {
        "new_tokens": args.paper_tokens,
        "batch": ANSWERS,
        "seconds": {name: round(value, 2) for name, value in engine_seconds.items()},
        "paper_s_a_prompt": round(a_prompt, 2),
        "paper_prompts_timed": len(loop_seconds),
        "times_as_fast": ratios,
    }


def table(records: list[dict[str, Any]]) -> list[str]:
    """Markdown, a line a batch size."""
    names = [name.removesuffix("_ms") for name in records[0] if name.endswith("_ms")]
    lines = [
        f"| batch | {' | '.join(names)} | loop / shared | resident / (plain + persrm) |",
        "| ---: " + "| --- " * len(names) + "| ---: | ---: |",
    ]
    for r in records:
        cells = [f"{r[f'{n}_ms']:.1f} ms ({r[f'{n}_ratio']:.2f}x)" for n in names]
        over_shared = f"{r['loop_ms'] / r['shared_ms']:.1f}x" if "shared" in names else ""
        over_sum = f"{r['resident_over_sum']:.2f}" if "resident_over_sum" in r else ""
        lines.append(f"| {r['batch']} | {' | '.join(cells)} | {over_shared} | {over_sum} |")
    return lines


def parse() -> argparse.Namespace:
    """The command line."""
    parser = arguments.make_parser(__doc__, out="benchmarks/results/cost.json")
    arguments.add_timing_options(parser, batches=(1, 4, 16), tokens=32, rounds=3)
    parser.add_argument("--paper-tokens", type=int, default=128)
    parser.add_argument("--paper-prompts", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=["shared", "resident", "ray"])
    parser.add_argument("--trace", type=Path, default=Path("benchmarks/results/overlap.trace.json"))
    return parser.parse_args()


def main() -> None:
    """See the module's docstring."""
    args = parse()
    base, adapter = resolve_base(args.base), resolve_adapter(args.adapter)
    config = read_config(adapter)
    w = tuple(1.0 if n == 0 else 0.0 for n in range(len(config.dimensions)))
    guidance = {"pad_weights": f"{config.dimensions[0]}=1", "pad_beta": BETA, "pad_top_k": TOP_K}
    llms = {name: start_engine(base, adapter, name, args) for name in ("plain", *args.engines)}
    from transformers import AutoModelForCausalLM

    backbone = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    model = PersRM.from_adapter(backbone, load_adapter(adapter))
    with torch.inference_mode():
        records = time_in_turns(llms, model, args, guidance, w)
        answers = time_whole_answers(llms, model, args, guidance, w)
    result = {
        "command": arguments.command_line(),
        "backbone": config.backbone.name,
        "fork_layer": config.fork_layer,
        "dtype": "bfloat16",
        "compiled": not args.eager,
        "versions": timed_engines.machine_and_versions(),
        "records": records,
        "table": table(records),
        "paper_loop": answers,
    }
    if "ray" in llms:

        def generate() -> None:
            generation_seconds(llms["ray"], 8, 24, args.prompt, guidance)

        result["overlap"] = trace_ray_overlap(served_model(llms["ray"]), generate, args.trace)
    print("\n".join(result["table"]))
    print(json.dumps(result))
    arguments.write_result(args.out, result)


if __name__ == "__main__":
    main()
