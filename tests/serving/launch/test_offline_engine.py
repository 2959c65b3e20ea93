"""A process of its own gives its result back, and is gone when the one that started it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pad_vllm.serving.launch.offline_engine import run_in_subprocess

SCRIPT = """
import os, sys, time
from pad_vllm.serving.launch.offline_engine import run_in_subprocess

def sleep(path):
    open(path, "w").write(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    run_in_subprocess(sleep, sys.argv[1])
"""


def test_it_gives_back_what_the_call_gives():
    assert run_in_subprocess(os.path.join, "a", "b") == os.path.join("a", "b")  # noqa: PTH118
    assert run_in_subprocess(os.getpid) != os.getpid()


def test_it_raises_what_the_call_raises():
    with pytest.raises(FileNotFoundError):
        run_in_subprocess(os.stat, "/nowhere")


def test_it_ends_with_the_process_that_started_it_however_that_ends(tmp_path):
    script, note = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, str(script), str(note)])
    until(lambda: note.exists() and note.read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    child = int(note.read_text())
    until(lambda: not alive(child))


def until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
