"""Many requests that start, are preempted, are cancelled and end: `request_churn.py JOB.json RESULT.json`.

In: an LLM's keyword arguments, distinct requests {"prompt", "sampling"}, how many to draw of them, how many
may be open at once, a seed. With "window" requests are drawn of so many neighbours, further on as time goes.
Every drawn request gets a random length and some are cancelled before they end.
Out: every answer, the answer of each distinct request alone, memory over time, counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
sys.path.insert(0, str(Path(__file__).parent))


def main(given: str, made: str) -> None:
    import async_scheduling_on_cpu

    async_scheduling_on_cpu.enable()
    from vllm import LLM

    from pad_vllm.serving.worker.instance import find_instance

    job = json.loads(Path(given).read_text("utf-8"))
    llm = LLM(**job["llm"], disable_log_stats=False)
    engine = llm.llm_engine
    runner = engine.model_executor.driver_worker.worker.model_runner
    result = _storm(engine, job)
    v2 = any(".v1.worker.gpu." in cls.__module__ for cls in type(runner).__mro__)
    result["runner"] = "v2" if v2 else "v1"
    wanted = engine.vllm_config.scheduler_config.async_scheduling
    result["async"] = bool(getattr(runner, "use_async_scheduling", wanted))
    result["preemptions"] = sum(
        one.value for one in llm.get_metrics() if one.name == "vllm:num_preemptions"
    )
    rewards = runner.get_model().pad_rewards
    instance = find_instance(engine.vllm_config.instance_id)
    result["declined"] = dict(instance.failure_log.counts)
    if hasattr(rewards, "scorer"):
        result["counts"] = dict(vars(rewards.scorer.counts))
        rewards.scorer([])
        result["blocks_left"] = rewards.scorer.used_blocks
    result["alone"] = [_alone(llm, one) for one in job["requests"]]
    Path(made).write_text(json.dumps(result), "utf-8")


def _storm(engine: Any, job: dict[str, Any]) -> dict[str, Any]:
    rng = random.Random(job["seed"])
    said: list[dict[str, Any]] = []
    waiting: dict[str, dict[str, Any]] = {}
    memory: list[tuple[float, float]] = []
    objects: list[dict[str, int]] = []
    begin, steps = time.monotonic(), 0
    while len(said) + len(waiting) < job["count"] or waiting:
        while len(waiting) < job["open"] and len(said) + len(waiting) < job["count"]:
            name = str(len(said) + len(waiting))
            waiting[name] = _send(engine, name, job, rng)
        for output in engine.step():
            one = waiting.get(output.request_id)
            if one is None:
                continue
            one["token_ids"] = list(output.outputs[0].token_ids)
            cancelled = len(one["token_ids"]) >= one["cancel_at"] and not output.finished
            if cancelled:
                engine.abort_request([output.request_id])
            if cancelled or output.finished:
                said.append({**waiting.pop(output.request_id), "cancelled": cancelled})
        steps += 1
        if len(objects) < 1 and len(said) >= job["count"] // 2:
            objects.append(_objects())
        if steps % 50 == 0:
            gc.collect()
            memory.append((time.monotonic() - begin, _resident_mib()))
    return {
        "objects": [*objects, _objects()],
        "said": said,
        "memory": memory,
        "steps": steps,
        "seconds": time.monotonic() - begin,
    }


def _send(engine: Any, name: str, job: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    number = len(job["requests"])
    # From the whole list, or from a part of it that moves.
    which = rng.randrange(job.get("window", number))
    if "window" in job:
        which = (which + int(name) * number // job["count"]) % number
    length = rng.randint(1, job["longest"])
    engine.add_request(
        name, _prompt(job["requests"][which]), _params(job["requests"][which], length)
    )
    cancel_at = rng.randint(1, length) if rng.random() < job["cancel"] else 1 << 30
    return {"which": which, "length": length, "cancel_at": cancel_at, "token_ids": []}


def _alone(llm: Any, request: dict[str, Any]) -> list[int]:
    longest = request["sampling"]["max_tokens"]
    (output,) = llm.generate([_prompt(request)], _params(request, longest), use_tqdm=False)
    return list(output.outputs[0].token_ids)


def _prompt(request: dict[str, Any]) -> Any:
    prompt = request["prompt"]
    return prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}


def _params(request: dict[str, Any], length: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**{**request["sampling"], "max_tokens": length})


def _objects() -> dict[str, int]:
    """How many objects of each class that belongs to one request exist."""
    kinds = dict.fromkeys(
        ("GuidedRequest", "ResidentRowState", "AlignedTokens", "CachedRow", "ScoringRequest"), 0
    )
    for one in gc.get_objects():
        name = type(one).__name__
        if name in kinds and type(one).__module__.startswith("pad_vllm"):
            kinds[name] += 1
    return kinds


def _resident_mib() -> float:
    """MiB of this process in RAM, after glibc has given freed memory back."""
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main(*sys.argv[1:])
