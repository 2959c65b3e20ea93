"""Runs vLLM engines for tests: waits for lines `JOBS.json RESULTS.json` on standard input, until that ends.

In: {"jobs": a list, as `engine_processes.engine` describes them; "env": variables to set}. Out: a list of
results, or {"error": what was raised}. vLLM is imported once; every line's engines run one after the other in
a fork of this process (VLLM_ENABLE_V1_MULTIPROCESSING=0), so that what the plugin computes can be recorded.
With --apart in a process of their own.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import gpu_like_compilation
import offloading_on_cpu
import ray_executor_on_cpu

HIDDEN = ("h_B", "h_T")


def main() -> None:
    argv = sys.argv[1:]
    if len(argv) == 2:
        _run_and_exit(*argv)
    if not argv:
        _import_vllm()
    run_jobs = _run_apart if argv else _run_forked
    for line in sys.stdin:
        jobs, results = line.split()
        if code := run_jobs(jobs, results):  # it wrote nothing
            _write(results, {"error": f"the engines' process ended with exit status {code}"})


def _run_forked(jobs: str, results: str) -> int:
    """Run a file of jobs in a fork of this process -> its exit status."""
    pid = os.fork()
    if pid == 0:
        _run_and_exit(jobs, results)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _run_apart(jobs: str, results: str) -> int:
    """The same in a process that imports vLLM itself: a fork of one that looked for a GPU cannot use it."""
    return subprocess.run([sys.executable, __file__, jobs, results], check=False).returncode


def _import_vllm() -> None:
    """Import what every job needs; none of it starts a thread or opens a device. The objects are frozen: vLLM
    collects garbage a dozen times an engine, and going through all that is imported takes half a second.
    """
    import vllm.entrypoints.llm
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_worker  # noqa: F401

    gc.freeze()


def _run_and_exit(jobs: str, results: str) -> NoReturn:
    """Run a file of jobs, write the results, and end this process."""
    try:
        given = json.loads(Path(jobs).read_text("utf-8"))
        os.environ.update(given["env"])
        _write(results, [_run_on_nodes(job) for job in given["jobs"]])
    except BaseException:  # noqa: BLE001, whatever it is, the test wants to see it
        _write(results, {"error": traceback.format_exc()})
    finally:
        sys.stdout.flush()
        os._exit(0)


def _write(results: str, content: Any) -> None:
    """Write the file whole or not at all: the test waits for it."""
    draft = Path(results).with_suffix(".draft")
    draft.write_text(json.dumps(content), "utf-8")
    draft.replace(results)


def _use_onednn_for_int8() -> None:
    """On CPUs with AMX vLLM gives int8 layers a kernel that takes 16-bit activations only, whatever the
    model's dtype is: float32 then fails in plain vLLM too. oneDNN's kernel, which other CPUs get, takes all.
    """
    from vllm.model_executor.kernels.linear.scaled_mm import cpu

    cpu.check_cpu_sgl_kernel = lambda *_: False


def _run_on_nodes(job: dict[str, Any]) -> dict[str, Any]:
    with ray_executor_on_cpu.nodes(job.get("ray_nodes", [])):
        return _run(job)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    from vllm import LLM

    if job.get("gpu_like_compilation", False) and not _on_gpu():
        gpu_like_compilation.enable()
    if job.get("weights_from"):
        _load_from(job["weights_from"])
    if job.get("offload", False):
        offloading_on_cpu.enable()
    _use_onednn_for_int8()
    early = _note_early_prefills()
    begin = time.monotonic()
    llm = LLM(**_arguments(**job["llm"]))
    started = time.monotonic()
    if job.get("ranks", False):
        llm.collective_rpc(_note_guidance)
    guided = _guided_rows()
    tokenizer = llm.get_tokenizer() if not job["llm"].get("skip_tokenizer_init") else None
    with _recorder(llm, on=job.get("record", False)) as record, _noted_drafts(job) as drafts:
        outputs = _batch(llm, tokenizer, job.get("requests", []))
    calls = iter(job.get("calls", []))
    errors, rounds = [], []
    for requests in job.get("rounds", []):
        errors.append(_call(llm, *next(calls, (None, None))))
        rounds.append(_batch(llm, tokenizer, requests))
    finished = time.monotonic()
    result = {
        "outputs": [_output(output) for output in outputs],
        "steps": [_steps(record[output.request_id], output) for output in outputs],
        "drafts": [drafts[output.request_id] for output in outputs],
        "rounds": [[_output(output) for output in outputs] for outputs in rounds],
        "said": errors,
        "counters": _counters(llm),
        "runner": _runner(llm),
        "early": [*early],
        "pieces": gpu_like_compilation.pieces(),
        "padded": [*gpu_like_compilation.padded],
        "offloaded": offloading_on_cpu.offloaded_bytes(),
        "ranks": llm.collective_rpc(_noted_guidance) if job.get("ranks", False) else [],
        "guided_rows": _guided_rows() - guided,
        "start_s": started - begin,
        "run_s": finished - started,
    }
    del llm
    _clean_up()
    return result


def _arguments(reasoning_config: dict[str, Any] | None = None, **llm: Any) -> dict[str, Any]:
    """Arguments of vllm.LLM, which takes some configs only as objects."""
    from vllm.config.reasoning import ReasoningConfig

    if reasoning_config is not None:
        llm["reasoning_config"] = ReasoningConfig(**reasoning_config)
    return llm


def _batch(llm: Any, tokenizer: Any, requests: list[dict[str, Any]]) -> list[Any]:
    """One batch of requests -> vLLM's outputs, in order."""
    prompts = [_prompt(request, tokenizer) for request in requests]
    params = [_params(**request.get("sampling", {})) for request in requests]
    loras = [_lora(request.get("lora")) for request in requests]
    of_loras = {"lora_request": loras} if any(loras) else {}
    return llm.generate(prompts, params, use_tqdm=False, **of_loras) if requests else []


def _lora(lora: list[Any] | None) -> Any:
    """[name, number, folder] -> vLLM's LoRARequest."""
    from vllm.lora.request import LoRARequest

    return lora and LoRARequest(*lora)


def _steps(steps_at: dict[int, Any], output: Any) -> list[Any]:
    """The steps of the answer's tokens, in their order: a step of a rejected draft may stand behind them."""
    return [steps_at[position] for position in sorted(steps_at)][: len(output.outputs[0].token_ids)]


def _call(llm: Any, method: str | None, arguments: Any) -> str | None:
    """Call a method of the worker, or of this file -> the error it raised, as text."""
    try:
        if method is not None:
            llm.collective_rpc(_METHODS.get(method, method), kwargs=arguments)
    except Exception as error:  # noqa: BLE001, whatever it is, the test wants to see it
        return str(error)
    return None


def _note_early_prefills() -> list[int]:
    """Of every RayRewardScorer from here on: how many rows each call to prefill early has."""
    from pad_vllm.engines.ray_engine import RayRewardScorer

    start_prefill, early = RayRewardScorer.start_prefill, []

    def noting(self: Any, requests: Any) -> None:
        early.append(len(requests))
        start_prefill(self, requests)

    RayRewardScorer.start_prefill = noting
    return early


def _rule() -> Any:
    """The rule that guides: guidance.py, or on a GPU its kernels."""
    import torch

    from pad_vllm.kernels import kernel_choice

    return kernel_choice.rule_for_device(torch.device("cuda" if _on_gpu() else "cpu"))


def _load_from(folder: str) -> None:
    """Make a load format `elsewhere` that reads the weights of any model from this folder."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    @register_model_loader("elsewhere")
    class _Elsewhere(DefaultModelLoader):
        def __init__(self, load_config: Any) -> None:
            super().__init__(dataclasses.replace(load_config, load_format="auto"))

        def load_weights(self, model: Any, model_config: Any) -> None:
            there = copy.copy(model_config)
            there.model = folder
            super().load_weights(model, there)


def _on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _note_guidance(worker: Any) -> None:
    """On each rank: note candidates, rewards and guided rows of every step, to the last bit."""
    guidance = _rule()
    guide, steps = guidance.guide, []

    def noting(
        logits: Any, rows: Any, z: Any, ids: Any, reward: Any, *args: Any, **keywords: Any
    ) -> Any:
        result = guide(logits, rows, z, ids, reward, *args, **keywords)
        tensors = (ids, reward, logits[rows].contiguous())
        steps.append([reward.tolist(), *(hash_of(tensor) for tensor in tensors)])
        return result

    def hash_of(tensor: Any) -> str:
        import hashlib

        return hashlib.sha256(tensor.cpu().numpy().tobytes()).hexdigest()

    worker.pad_steps, worker.pad_guide, guidance.guide = steps, guide, noting


def _noted_guidance(worker: Any) -> dict[str, Any]:
    """A rank's steps: rewards [G, K], and hashes of candidates, rewards and guided rows."""
    guidance = _rule()
    guidance.guide = worker.pad_guide  # the next engine may be in this process
    buffers = worker.model_runner.model.named_buffers()
    return {
        "steps": worker.pad_steps,
        "runner": "v2" if _is_v2(worker.model_runner) else "v1",
        "buffers": {name: list(buffer.shape) for name, buffer in buffers},
        "speaks": logging.getLogger("pad_vllm").isEnabledFor(logging.WARNING),
    }


def _guided_rows() -> float:
    """PAD's own count, as /metrics shows it."""
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value("pad:rows_guided_total") or 0.0


def _lose_weights(worker: Any) -> None:
    """Zero a model's weights but not its buffers, as a level-2 sleep and waking up leave it."""
    model = worker.model_runner.model
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for tensor in (*model.parameters(), *model.buffers(), *_tensors(vars(model.pad_rewards))):
        tensor.data.zero_()
    for name, buffer in model.named_buffers():
        buffer.data.copy_(buffers[name])


def _lose_reward_model(worker: Any) -> None:
    """Zero the heads of `resident`'s reward model."""
    for head in worker.model_runner.model.pad_rewards.scorer._heads[:2]:
        head.zero_()


def _tensors(thing: Any) -> Any:
    if hasattr(thing, "untyped_storage"):
        yield thing
    elif isinstance(thing, dict | tuple):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from _tensors(part)


def _slice_logits(worker: Any, rows: int) -> None:
    """Have V2 verify drafts in slices of few rows, as it does where the logits pass a GiB."""
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    vocabulary = worker.model_runner.vocab_size
    rejection_sampler.MAX_CHUNK_BYTES = rows * vocabulary * rejection_sampler._FP32_BYTES


def _lose_rewards(worker: Any) -> None:
    """Have the reward engine fail in every step from now on."""

    def fail(_step: Any) -> NoReturn:
        raise RuntimeError("no rewards")

    worker.model_runner.model.pad_rewards.rewards = fail


def _skip_processors(worker: Any) -> None:
    """Have PAD's logits processor told of requests and never applied from now on."""
    runner = worker.model_runner
    processors = (
        runner.sampler.logits_processors if _is_v2(runner) else runner.input_batch.logitsprocs.all
    )
    for processor in processors:
        if type(processor).__name__ == "PADLogitsProcessor":
            processor.apply = lambda logits, _ctx=None: logits


def _lose_outcomes(worker: Any) -> None:
    """Have the front end's calls for outcomes fail from now on."""

    def fail(_keys: Any) -> NoReturn:
        raise RuntimeError("no outcomes")

    worker.pad_outcomes = fail


_METHODS = {
    "lose_outcomes": _lose_outcomes,
    "lose_reward_model": _lose_reward_model,
    "lose_rewards": _lose_rewards,
    "lose_weights": _lose_weights,
    "skip_processors": _skip_processors,
    "slice_logits": _slice_logits,
}
"""Of this file, that a job may call on the worker."""


def _params(structured_outputs: dict[str, Any] | None = None, **sampling: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    if structured_outputs is not None:
        sampling["structured_outputs"] = StructuredOutputsParams(**structured_outputs)
    if "logit_bias" in sampling:  # JSON has no integer keys
        bias = sampling["logit_bias"].items()
        sampling["logit_bias"] = {int(token): value for token, value in bias}
    return SamplingParams(**sampling)


def _counters(llm: Any) -> dict[str, float]:
    """vLLM's own counters by name, where the engine keeps statistics."""
    if not llm.llm_engine.log_stats:
        return {}
    return {one.name: one.value for one in llm.get_metrics() if hasattr(one, "value")}


def _prompt(request: dict[str, Any], tokenizer: Any) -> Any:
    if "messages" in request:
        ids = tokenizer.apply_chat_template(
            request["messages"], add_generation_prompt=True, return_dict=False
        )
        return {"prompt_token_ids": ids}
    prompt = request["prompt"]
    if "image" in request:
        from PIL import Image

        return {"prompt": prompt, "multi_modal_data": {"image": Image.open(request["image"])}}
    return prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}


def _output(output: Any) -> dict[str, Any]:
    choices = [
        {
            "text": one.text,
            "token_ids": list(one.token_ids),
            "finish_reason": one.finish_reason,
            "logprobs": one.logprobs
            and [{str(t): lp.logprob for t, lp in step.items()} for step in one.logprobs],
        }
        for one in output.outputs
    ]
    return {
        "prompt_token_ids": list(output.prompt_token_ids),
        "cached_tokens": output.num_cached_tokens,
        "pad": getattr(output, "pad", None),
        "choices": choices,
        **choices[0],
    }


def _model_runner(llm: Any) -> Any:
    # The front end's path to it: only there is when everything runs in one process.
    executor = getattr(llm.llm_engine, "model_executor", None)
    worker = getattr(executor, "driver_worker", None)
    return getattr(getattr(worker, "worker", worker), "model_runner", None)


def _runner(llm: Any) -> str | None:
    runner = _model_runner(llm)
    if runner is None:
        return None
    return "v2" if _is_v2(runner) else "v1"


def _is_v2(runner: Any) -> bool:
    return any(".v1.worker.gpu." in cls.__module__ for cls in type(runner).__mro__)


@contextmanager
def _recorder(llm: Any, *, on: bool | str) -> Any:
    """Notes the candidates of guided rows: request -> position -> {"ids", "z", "reward"}; with "hidden"
    the hidden states of `shared` too, under HIDDEN. A position that is decided again counts as the last time.
    """
    from pad_vllm.engines.shared.shared_rewards import SharedRewards
    from pad_vllm.serving.worker.logits_processor import PADLogitsProcessor

    steps: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    if not on:
        yield steps
        return
    guidance = _rule()
    runner, guide, apply = _model_runner(llm), guidance.guide, PADLogitsProcessor.apply
    names: list[str] = []
    positions: list[int | None] = []

    def noting_apply(self: Any, logits: Any, ctx: Any = None) -> Any:
        if ctx is None:
            names[:] = runner.input_batch.req_ids
            positions[:] = [None] * len(names)
        else:
            name_of = runner.req_states.index_to_req_id
            names[:] = [name_of[index] for index in ctx.expanded_idx_mapping.tolist()]
            positions[:] = ctx.pos.tolist()
        return apply(self, logits, ctx)

    def noting_guide(
        logits: Any, rows: Any, z: Any, ids: Any, reward: Any, *args: Any, **keywords: Any
    ) -> Any:
        columns = {"ids": ids, "z": z, "reward": reward, **hidden}
        for guided, row in enumerate(rows.tolist()):
            # vLLM appends a random part to the name of a request.
            steps_at = steps[names[row].split("-")[0]]
            position = len(steps_at) if positions[row] is None else positions[row]
            steps_at[position] = {n: tensor[guided].tolist() for n, tensor in columns.items()}
        return guide(logits, rows, z, ids, reward, *args, **keywords)

    def noting_states(self: Any, h_B: Any, h_T: Any) -> None:
        states[:] = h_B, h_T
        store_states(self, h_B, h_T)

    def noting_rewards(self: Any, step: Any) -> Any:
        for name, h in zip(HIDDEN, states, strict=False):
            hidden[name] = h[step.first_row :][step.rows].float()
        return rewards(self, step)

    hidden: dict[str, Any] = {}
    states: list[Any] = []
    rewards, store_states = SharedRewards.rewards, SharedRewards.store_states
    guidance.guide, PADLogitsProcessor.apply = noting_guide, noting_apply
    if on == "hidden":
        SharedRewards.rewards, SharedRewards.store_states = noting_rewards, noting_states
    try:
        yield steps
    finally:
        guidance.guide, PADLogitsProcessor.apply = guide, apply
        SharedRewards.rewards, SharedRewards.store_states = rewards, store_states


@contextmanager
def _noted_drafts(job: dict[str, Any]) -> Any:
    """Notes what a drafter that reads hidden states drafts: request -> a step each, its draft's token ids."""
    noted: dict[str, list[list[int]]] = defaultdict(list)
    if not job.get("drafts", False):
        yield noted
        return
    from vllm.v1.worker.gpu.spec_decode.dflash.speculator import DFlashSpeculator
    from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.speculator import (
        TargetDependentARSpeculator,
    )

    def noting(propose: Any, self: Any, input_batch: Any, *args: Any, **keywords: Any) -> Any:
        drafts = propose(self, input_batch, *args, **keywords)
        for name, draft in zip(input_batch.req_ids, drafts.tolist(), strict=True):
            noted[name.split("-")[0]].append(draft)
        return drafts

    originals = {cls: cls.propose for cls in (TargetDependentARSpeculator, DFlashSpeculator)}
    for cls, propose in originals.items():
        cls.propose = functools.partialmethod(functools.partial(noting, propose))
    try:
        yield noted
    finally:
        for cls, propose in originals.items():
            cls.propose = propose


def _clean_up() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()  # also thaws what was frozen
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    main()
