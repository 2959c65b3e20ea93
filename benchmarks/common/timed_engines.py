"""vLLM engines in this process, plain and with PAD, and how long their steps take.

Import this before torch: it sets what the engines' environment lacks (VLLM_ENABLE_V1_MULTIPROCESSING,
VLLM_CPU_KVCACHE_SPACE, VLLM_CPU_OMP_THREADS_BIND, OMP_NUM_THREADS). A step's time is (time for N + 1 tokens -
time for 1 token) / N, so that prefill drops out.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # no second process on the cores
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
# In one process vLLM's own binding puts the threads of compiled code on one core. One core is left
# free, as vLLM leaves one to its engine process.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) - 1)))

RequestArguments = dict[str, Any] | None
"""A request's extra_args; None for an unguided one."""


def add_engine_options(parser: argparse.ArgumentParser, *, dtype: str, gpu_memory: float) -> None:
    """What `start_engine` reads beside --eager.

    Args:
        parser: Gets --dtype, --load-format and --gpu-memory.
        dtype: Default type of the weights.
        gpu_memory: Default share of a GPU's memory for each engine.
    """
    parser.add_argument("--dtype", default=dtype)
    parser.add_argument("--load-format", default="auto", help="`dummy` times a bare config.json")
    parser.add_argument(
        "--gpu-memory", type=float, default=gpu_memory, help="share for each engine"
    )


def start_engine(
    base: str,
    args: argparse.Namespace,
    adapter: str | None,
    settings: Mapping[str, Any] | None = None,
    **sizes: Any,
) -> Any:
    """A vllm.LLM in this process.

    Args:
        base: Folder of the base.
        args: With what `add_engine_options` adds, and --eager.
        adapter: Folder of the adapter that guides; None for an engine without one.
        settings: Further settings of PAD; without them and an adapter the engine is plain vLLM.
        sizes: Further arguments of vllm.LLM: longest text and batch, prefix cache.
    """
    from vllm import LLM

    pad_arguments: dict[str, Any] = {}
    load_format = args.load_format
    named = {} if adapter is None else {"adapter": adapter}
    if named or settings:
        pad = {**named, **(settings or {}), "load_format": args.load_format}
        pad_arguments = {
            "logits_processors": ["pad_vllm:PADLogitsProcessor"],
            "additional_config": {"pad": pad},
        }
        load_format = "pad"
    return LLM(
        base,
        load_format=load_format,
        dtype=args.dtype,
        enforce_eager=args.eager,
        gpu_memory_utilization=args.gpu_memory,
        seed=0,
        **sizes,
        **pad_arguments,
    )


def engine_sizes(args: argparse.Namespace) -> dict[str, Any]:
    """Sizes of engines whose steps are timed: no larger than they have to be, and no prefix cache."""
    return {
        "max_model_len": args.prompt + args.tokens + 8,
        "max_num_seqs": max(args.batches),
        "enable_prefix_caching": False,
    }


def prompt_rows(batch: int, length: int) -> list[list[int]]:
    """Token ids of `batch` prompts of `length` tokens, no two alike."""
    return [[(17 * row + 31 * i) % 1000 + 100 for i in range(length)] for row in range(batch)]


def generation_seconds(
    llm: Any, batch: int, tokens: int, prompt: int, request_arguments: RequestArguments
) -> float:
    """Seconds of one call that generates a batch.

    Args:
        llm: The engine.
        batch: Number of prompts.
        tokens: Length of every answer.
        prompt: Length of every prompt, in tokens.
        request_arguments: Every request's extra_args.
    """
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": row} for row in prompt_rows(batch, prompt)]
    params = SamplingParams(
        temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=request_arguments
    )
    start = time.perf_counter()
    llm.generate(prompts, params, use_tqdm=False)
    return time.perf_counter() - start


def first_token_and_step_seconds(
    llm: Any, batch: int, args: argparse.Namespace, request_arguments: RequestArguments
) -> tuple[float, float]:
    """Seconds to the first token, and of each step after it.

    Args:
        llm: The engine.
        batch: Number of prompts.
        args: With --prompt and --tokens.
        request_arguments: Every request's extra_args.
    """
    first = generation_seconds(llm, batch, 1, args.prompt, request_arguments)
    whole = generation_seconds(llm, batch, args.tokens + 1, args.prompt, request_arguments)
    return first, (whole - first) / args.tokens


def step_seconds(
    llm: Any, batch: int, args: argparse.Namespace, request_arguments: RequestArguments
) -> float:
    """Seconds of one step; see `first_token_and_step_seconds`.

    Args:
        llm: The engine.
        batch: Number of prompts.
        args: With --prompt and --tokens.
        request_arguments: Every request's extra_args.
    """
    return first_token_and_step_seconds(llm, batch, args, request_arguments)[1]


def machine_and_versions() -> dict[str, str]:
    """Versions of vLLM, PyTorch and Python, the device and the number of threads, for a result."""
    import torch
    import vllm

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "threads": str(torch.get_num_threads()),
    }
