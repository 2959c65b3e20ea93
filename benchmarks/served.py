"""A `vllm serve` of one's own for as long as a script measures it. In: its arguments. Out: the address."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence

PROGRAM = (sys.executable, "-m", "pad_vllm.serving.launch.vllm_program")
"""vLLM's program, also where its CPU build is installed."""

_PATIENCE = 600  # seconds


@contextlib.contextmanager
def served(argv: Sequence[str]) -> Iterator[str]:
    """argv: `serve BASE ...`, without a port -> http://127.0.0.1:PORT, healthy."""
    port = _free_port()
    process = subprocess.Popen([*PROGRAM, *argv, "--port", str(port)], start_new_session=True)
    try:
        _wait(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(_PATIENCE):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
            return
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        time.sleep(1)
    raise SystemExit(f"the server was not healthy after {_PATIENCE} s")
