"""Which code runs the rule, and that the kernels return what guidance.py returns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pad_vllm import guidance
from pad_vllm.kernels import kernel_choice

pytest.importorskip("triton")


@pytest.fixture(autouse=True)
def nothing_cached():
    """No device has its rule yet."""
    kernel_choice._rules.clear()
    yield
    kernel_choice._rules.clear()


def test_the_kernels_return_what_the_rule_returns():
    cases = Path(__file__).with_name("interpreted.py")
    interpreter = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cases],
        env={**os.environ, **interpreter},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_a_cpu_runs_the_rule_as_it_is_written():
    assert kernel_choice.rule_for_device(torch.device("cpu")) is guidance


def test_a_gpu_runs_the_kernels_where_they_agree(monkeypatch, caplog):
    kernels = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "pad_vllm.kernels.triton_kernels", kernels)
    monkeypatch.setattr("pad_vllm.kernels.triton_kernels", kernels, raising=False)
    monkeypatch.setattr(kernel_choice, "agrees_with_guidance", lambda *_: True)
    assert kernel_choice.rule_for_device(torch.device("cuda")) is kernels
    assert not caplog.records


@pytest.mark.parametrize(
    ("agree", "message"),
    [
        (lambda *_: False, "its results differ from guidance.py's"),
        (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_gpu_where_they_differ_runs_the_rule_and_warns(monkeypatch, caplog, agree, message):
    monkeypatch.setattr(kernel_choice, "agrees_with_guidance", agree)
    assert kernel_choice.rule_for_device(torch.device("cuda")) is guidance
    assert message in caplog.text
