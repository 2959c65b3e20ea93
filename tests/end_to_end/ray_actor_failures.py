"""Reward actors that die or stall in mid-answer: `ray_actor_failures.py JOB.json RESULT.json`.

In: an LLM's keyword arguments with the ray engine, requests, troubles ("kill", "stall"). One batch runs
undisturbed. Then, for each trouble, the actor is killed or stopped at the tenth step of a batch, and single
answers follow until one is guided again. Out: the answers, and the engine's counts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
TROUBLE_AT = 10  # steps into the batch
STALL_S = 4.0
PATIENCE_S = 120.0


def main(given: str, made: str) -> None:
    from vllm import LLM, SamplingParams

    job = json.loads(Path(given).read_text("utf-8"))
    llm = LLM(**job["llm"])
    rewards = (
        llm.llm_engine.model_executor.driver_worker.worker.model_runner.get_model().pad_rewards
    )
    prompts = [{"prompt_token_ids": one["prompt"]} for one in job["requests"]]
    params = [SamplingParams(**one["sampling"]) for one in job["requests"]]
    calm = _run(llm, prompts, params, lambda: None)
    result: dict[str, Any] = {"calm": calm}
    for kind in job["troubles"]:
        scores = rewards.scorer
        before = scores.failed_calls, scores.failure_log.unguided_rows
        troubled = _run(llm, prompts, params, lambda kind=kind: _trouble(rewards, kind))
        counts = {
            "failures": scores.failed_calls - before[0],
            "unguided": scores.failure_log.unguided_rows - before[1],
        }
        back = _until_guided(llm, prompts[0], params[0], calm["said"][0]) if job["wait"] else None
        result[kind] = {**troubled, **counts, "back_s": back}
    Path(made).write_text(json.dumps(result), "utf-8")


def _run(llm: Any, prompts: list[Any], params: list[Any], trouble: Any) -> dict[str, Any]:
    engine, said, steps = llm.llm_engine, {}, 0
    for number, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
        engine.add_request(str(number), prompt, one)
    while engine.has_unfinished_requests():
        if steps == TROUBLE_AT:
            trouble()
        steps += 1
        for output in engine.step():
            if output.finished:
                first = output.outputs[0]
                said[output.request_id] = (list(first.token_ids), first.finish_reason)
    done = [said[str(number)] for number in range(len(prompts))]
    return {"said": [one for one, _ in done], "ends": [why for _, why in done]}


def _trouble(rewards: Any, kind: str) -> None:
    actor = rewards.scorer._actors[0]
    pid = rewards.scorer._ray.get(actor.handle.pid.remote())
    os.kill(pid, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    if kind == "stall" and os.fork() == 0:
        time.sleep(STALL_S)
        os.kill(pid, signal.SIGCONT)
        os._exit(0)


def _until_guided(llm: Any, prompt: Any, params: Any, wanted: list[int]) -> float | None:
    """Seconds until the answer is the guided one again."""
    begin = time.monotonic()
    while time.monotonic() - begin < PATIENCE_S:
        (output,) = llm.generate([prompt], params, use_tqdm=False)
        if list(output.outputs[0].token_ids) == wanted:
            return time.monotonic() - begin
        time.sleep(0.5)
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
