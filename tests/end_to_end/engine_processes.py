"""Real vLLM engines for tests, in processes beside this one. No vLLM in here.

Importing vLLM costs more than most engines, so a process that has imported it forks for each list of
jobs: they find nothing of each other. It lives until the tests end; there is one for each model runner.

result = engine({"llm": pad(model, adapter), "requests": [{"prompt": "Hello", "sampling": {...}}]})
result["outputs"][0]["text"]
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import torch
from filelock import FileLock, Timeout

HERE = Path(__file__).parent
ON_GPU = torch.cuda.is_available()
"""The same tests then run on it: its kernels, and captured graphs where an engine is not eager."""

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
    # Of attention on a GPU: products of float32 are not rounded to TF32.
    "TRITON_F32_DEFAULT": "ieee",
}
V2_ENV = {"VLLM_USE_V2_MODEL_RUNNER": "1"}
if ON_GPU:  # where V2 is what vLLM takes by itself
    ENV["VLLM_USE_V2_MODEL_RUNNER"] = "0"
else:  # what engine_site stands in for: a driver under Triton's interpreter, and torchvision's name
    V2_ENV["TRITON_INTERPRET"] = "1"
    # In front of what is there: pad_vllm may be found through it.
    ENV["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(HERE / "engine_site"), os.environ.get("PYTHONPATH")))
    )


SLOTS = 2
_START_S = 300


class EngineFailed(AssertionError):
    """The subprocess ended badly; the message ends with its log."""


def plain(model: str | Path, **llm: Any) -> dict[str, Any]:
    """LLM(...) arguments without PAD: float32, eager, small. `llm` adds and overrides."""
    small = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 32}
    # A KV cache of a set size: what is free is not measured while another engine starts.
    share = {"gpu_memory_utilization": 0.1, "kv_cache_memory_bytes": 2**30} if ON_GPU else {}
    return {"model": str(model), **small, **share, **llm}


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
            keyword arguments; structured_outputs is a mapping, "lora": [name, number, folder],
            "image": path of a picture that the prompt, a text, has a place for}]
        rounds: further batches of requests, run one after the other on the same engine
        calls: [method, keyword arguments] of the worker, or of engine_runner.py, before each of the rounds
        record: true notes the candidates of every guided row (one process only, no partial prefill);
            "hidden" the hidden states h_B and h_T of `shared` too
        drafts: true notes what a drafter that reads hidden states drafts (one process only)
        gpu_like_compilation: true for V2 compiled in pieces, with padded batches; for all jobs from this
            one on
        ranks: true notes what each rank of tensor parallelism guides with
        weights_from: folder of the weights, for the load format `elsewhere`
        offload: true has vLLM offload on a CPU too, for all jobs from this one on
        ray_nodes: numbers of devices: a Ray cluster of so many nodes, for vLLM's Ray executor
    result:
        outputs: a request each, in order: prompt_token_ids; choices [{text, token_ids,
            finish_reason, logprobs [{token id as text: logprob}] or None}]; cached_tokens; pad; the
            first choice's entries again
        rounds: the outputs of each further batch
        said: a call each, the text of the error that it raised, None where it raised none
        counters: vLLM's own, where disable_log_stats is False
        steps: a request each: [{ids, z, reward}], one a step; empty where nothing was noted
        drafts: a request each: token ids drafted after each step; empty where nothing was noted
        early: rows that `ray` was asked for before a forward, each time
        pieces: how many vLLM split the models into that it compiled; padded: tokens added to each step
        offloaded: bytes of weights that vLLM offloaded
        runner: "v1" or "v2", None where the engine has a process of its own
        ranks: a rank each, {steps: [[rewards, hashes of candidates, rewards and guided rows]], runner,
            buffers: shapes by name; speaks: whether its warnings are logged}
        guided_rows: how many PAD counted, as in /metrics
        start_s, run_s: seconds to start the engine, to run all requests
    env: added to this process's environment, over ENV.
    Raises EngineFailed, with the end of the subprocess's log.
    """
    return engines([job], env, timeout=timeout)[0]


def engines(
    jobs: list[dict[str, Any]], env: dict[str, str] | None = None, *, timeout: float = 900
) -> list[dict[str, Any]]:
    """Several engines, one after the other in one process."""
    v2 = V2_ENV if "VLLM_USE_V2_MODEL_RUNNER" in (env or {}) else {}
    with tempfile.TemporaryDirectory(prefix="pad_engine_") as scratch, engine_slot():
        given, made = (Path(scratch) / name for name in ("jobs.json", "results.json"))
        given.write_text(json.dumps({"jobs": jobs, "env": env or {}}), "utf-8")
        return _Forking.under(v2).answer(given, made, timeout)


class _Forking:
    """`engine_runner.py`, vLLM imported, waiting for jobs."""

    _running: ClassVar[dict[str, _Forking]] = {}

    def __init__(self, env: dict[str, str]) -> None:
        self.log = Path(tempfile.mkdtemp(prefix="pad_engines_")) / "log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, HERE / "engine_runner.py", *(["--apart"] if ON_GPU else [])],
                env=environment(env),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                text=True,
                start_new_session=True,
            )
        atexit.register(self.end)

    @classmethod
    def under(cls, env: dict[str, str]) -> _Forking:
        """The one for an environment, started where there is none."""
        name = json.dumps(env, sort_keys=True)
        if name not in cls._running or cls._running[name].process.poll() is not None:
            cls._running[name] = cls(env)
        return cls._running[name]

    def answer(self, given: Path, made: Path, timeout: float) -> Any:
        """The results of a file of jobs."""
        assert self.process.stdin is not None
        begun = self.log.stat().st_size
        self.process.stdin.write(f"{given} {made}\n")
        self.process.stdin.flush()
        end = time.monotonic() + timeout
        while not made.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                self.end()
                raise EngineFailed(f"no results in {timeout} s\n{tail(self.log, begun)}")
            time.sleep(0.02)
        results = json.loads(made.read_text("utf-8"))
        if isinstance(results, dict):
            raise EngineFailed(f"{results['error']}\n{tail(self.log, begun)}")
        return results

    def end(self) -> None:
        """Kill it, with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def outcome(
    script: str,
    job: Any,
    env: dict[str, str] | None = None,
    *,
    timeout: float = 900,
) -> Any:
    """Run `SCRIPT JOB.json RESULT.json` of this folder in a process of its own -> its result."""
    with tempfile.TemporaryDirectory(prefix="pad_engine_") as scratch:
        given, made, log = (Path(scratch) / name for name in ("jobs.json", "results.json", "log"))
        given.write_text(json.dumps(job), "utf-8")
        with engine_slot():
            code = run([HERE / script, given, made], log, env, timeout)
        if code != 0 or not made.exists():
            raise EngineFailed(f"exit status {code} (None: no end in {timeout} s)\n{tail(log)}")
        return json.loads(made.read_text("utf-8"))


@contextlib.contextmanager
def engine_slot() -> Iterator[None]:
    """Held while an engine runs. There are SLOTS of them on the machine: each engine computes on one
    thread, and has gigabytes.
    """
    slot = _free_slot()
    try:
        yield
    finally:
        slot.release()


def _free_slot() -> FileLock:
    name = f"pad_vllm_engine_{os.getuid()}_{{}}.lock"
    slots = [FileLock(Path(tempfile.gettempdir()) / name.format(n)) for n in range(SLOTS)]
    while True:
        for slot in slots:
            with contextlib.suppress(Timeout):
                slot.acquire(timeout=0)
                return slot
        time.sleep(0.1)


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


def tail(log: Path, begun: int = 0) -> str:
    """The end of a log, or of what it has from byte `begun` on, for a failure's message."""
    return log.read_bytes()[begun:][-6000:].decode("utf-8", errors="replace")


@contextlib.contextmanager
def serving(
    command: list[Any], log: Path, port: int, env: dict[str, str] | None = None
) -> Iterator[str]:
    """The address of a server that `command` starts on `port`; it ends with the block, whole."""
    with launched(command, log, env) as process:
        url = f"http://127.0.0.1:{port}"
        _wait_until_up(process, url, log)
        yield url


@contextlib.contextmanager
def launched(
    command: list[Any], log: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """The process of `command`, all output to `log`; it ends with the block, and its group."""
    with engine_slot(), log.open("wb") as out:
        process = subprocess.Popen(
            list(map(str, command)),
            env=environment(env),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    begin = time.monotonic()
    while time.monotonic() < begin + _START_S and process.poll() is None:
        if healthy(url):
            return
        time.sleep(0.5)
    raise AssertionError(f"the server did not start\n{tail(log)}")


def healthy(url: str) -> bool:
    """Whether the server answers."""
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.HTTPError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and, should one outlive it, its engine."""
    process.terminate()
    try:
        process.wait(30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
