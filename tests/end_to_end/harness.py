"""Real vLLM engines for tests, each in a subprocess of its own. No vLLM in here.

result = engine({"llm": pad(model, adapter), "requests": [{"prompt": "Hello", "sampling": {...}}]})
result["outputs"][0]["text"]
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

HERE = Path(__file__).parent
ENV = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # One thread, free to move: two bound to two cores spin at every barrier when anything else
    # runs there, and a step takes twenty times as long.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
# vLLM's V2 model runner on a CPU: Triton's interpreter, and a driver that says it is there.
V2_ENV = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "TRITON_INTERPRET": "1",
    "PYTHONPATH": str(HERE / "v2_site"),
}


class EngineFailed(AssertionError):
    """The subprocess ended badly; the message ends with its log."""


def plain(model: str | Path, **llm: Any) -> dict[str, Any]:
    """LLM(...) arguments without PAD: float32, eager, small. `llm` adds and overrides."""
    small = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 32}
    return {"model": str(model), **small, **llm}


def pad(
    model: str | Path, adapter: str | Path, settings: dict[str, Any] | None = None, **llm: Any
) -> dict[str, Any]:
    """The same with PAD; `settings` are further entries of additional_config["pad"]."""
    wiring = {
        "load_format": "pad",
        "logits_processors": ["pad_vllm:PADLogitsProcessor"],
        "additional_config": {"pad": {"adapter": str(adapter), **(settings or {})}},
    }
    return plain(model, **{**wiring, **llm})


def engine(
    job: dict[str, Any], env: dict[str, str] | None = None, *, timeout: float = 900
) -> dict[str, Any]:
    """Start one engine, run all the job's requests in one batch, give back what came out.

    job:
        llm: keyword arguments of vllm.LLM, from `plain` or `pad`
        requests: [{"prompt": text or token ids | "messages": chat, "sampling": SamplingParams'
            keyword arguments; structured_outputs is a mapping}]
        rounds: further batches of requests, run one after the other on the same engine
        record: true notes the candidates of every guided row (one process only, no partial prefill)
    result:
        outputs: a request each, in order: prompt_token_ids; choices [{text, token_ids,
            finish_reason, logprobs [{token id as text: logprob}] or None}]; cached_tokens; the
            first choice's entries again
        rounds: the outputs of each further batch
        counters: vLLM's own, where disable_log_stats is False
        steps: a request each: [{ids, z, reward}], one a step; empty where nothing was noted
        runner: "v1" or "v2", None where the engine has a process of its own
        start_s, run_s: seconds to start the engine, to run all requests
    env: added to this process's environment, over ENV.
    Raises EngineFailed, with the end of the subprocess's log.
    """
    return engines([job], env, timeout=timeout)[0]


def engines(
    jobs: list[dict[str, Any]], env: dict[str, str] | None = None, *, timeout: float = 900
) -> list[dict[str, Any]]:
    """Several engines, one after the other in one subprocess: saves the imports of all but one."""
    return outcome("run.py", jobs, env, timeout=timeout)


def outcome(
    script: str, job: Any, env: dict[str, str] | None = None, *, timeout: float = 900
) -> Any:
    """What `SCRIPT JOB.json RESULT.json` of this folder makes of a job, no other engine beside it."""
    with tempfile.TemporaryDirectory(prefix="pad_engine_") as scratch:
        given, made, log = (Path(scratch) / name for name in ("jobs.json", "results.json", "log"))
        given.write_text(json.dumps(job), "utf-8")
        with engine_slot():
            code = run([HERE / script, given, made], log, env, timeout)
        if code != 0 or not made.exists():
            raise EngineFailed(f"exit status {code} (None: no end in {timeout} s)\n{tail(log)}")
        return json.loads(made.read_text("utf-8"))


def engine_slot() -> FileLock:
    """Held while an engine runs: two at once would share a small machine's memory and cores."""
    return FileLock(Path(tempfile.gettempdir()) / f"pad_vllm_engine_{os.getuid()}.lock")


def environment(env: dict[str, str] | None = None) -> dict[str, str]:
    """What an engine's process runs under."""
    return {**os.environ, **ENV, **(env or {})}


def run(arguments: list[Any], log: Path, env: dict[str, str] | None, timeout: float) -> int | None:
    """`python ARGUMENTS`, all output to `log` -> exit status, None where it took too long."""
    command = [sys.executable, *map(str, arguments)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=environment(env), stdout=out, stderr=out, start_new_session=True
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # The whole group: an engine with a process of its own outlives its parent otherwise.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def tail(log: Path, characters: int = 6000) -> str:
    """The end of a log, for a failure's message."""
    return log.read_text("utf-8", errors="replace")[-characters:]
