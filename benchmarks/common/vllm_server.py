"""A `vllm serve` process that runs while a script measures it. In: its arguments. Out: its address."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

VLLM_PROGRAM = (sys.executable, "-m", "pad_vllm.serving.launch.vllm_program")
"""vLLM's command line, also where its CPU build is installed."""

_START_TIMEOUT_S = 600


@contextlib.contextmanager
def vllm_server(argv: Sequence[str]) -> Iterator[str]:
    """Yields http://127.0.0.1:PORT of a healthy server; argv: `serve BASE ...`, without a port."""
    port = _free_port()
    with running_server([*VLLM_PROGRAM, *argv, "--port", str(port)], port) as address:
        yield address


@contextlib.contextmanager
def running_server(
    command: Sequence[str],
    port: int,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Yields http://127.0.0.1:PORT of a healthy server, which a whole command line starts at that port."""
    process = subprocess.Popen(command, cwd=cwd, env=env, start_new_session=True)
    try:
        _wait_until_healthy(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(_START_TIMEOUT_S):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return
        if process.poll() is not None:
            raise SystemExit(f"the server ended with exit code {process.returncode}")
        time.sleep(1)
    raise SystemExit(f"the server was not healthy after {_START_TIMEOUT_S} s")
