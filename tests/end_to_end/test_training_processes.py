"""Training in processes of its own: killed with SIGKILL and started again, and on two Ray workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import planted_preferences
import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes")
    planted_preferences.settings(root)
    return root


def start(root: Path, out: str, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pad_vllm", "train", str(root / "base")]
    command += ["--data", f"jsonl={root / 'data.jsonl'}", "--out", str(root / out)]
    command += ["--fork-layer", "2", "--lora-rank", "4", "--head-rank", "4", "--top-k", "8"]
    command += ["--validation", "0.15", "--held-out", "0.2"]
    command += ["--cache", str(root / f"{out}.cache")]
    command += [
        part
        for choice in planted_preferences.RECIPE.items()
        for part in ("--recipe", "=".join(map(str, choice)))
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = (root / f"{out}.log").open("w")
    return subprocess.Popen(
        [*command, *more], stdout=output, stderr=subprocess.STDOUT, env=environment
    )


def finish(root: Path, out: str, *more: str) -> list[dict]:
    code = start(root, out, *more).wait(600)
    assert code == 0, (root / f"{out}.log").read_text()[-3000:]
    return json.loads((root / out / "history.json").read_text())


def wait_for(path: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not path.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert path.exists(), "the run ended before it could be killed"


@pytest.fixture(scope="module")
def alone(root):
    return finish(root, "alone")


@pytest.mark.parametrize(
    "moment", ["stage1/step-00000005", pytest.param("stage2", marks=pytest.mark.exhaustive)]
)
def test_a_killed_run_started_again_ends_with_the_same_numbers(root, alone, moment):
    out = f"killed-{moment.replace('/', '-')}"
    process = start(root, out)
    wait_for(root / f"{out}.run" / moment, process)
    process.kill()
    process.wait()
    assert not (root / out / "history.json").exists()
    assert finish(root, out) == alone
    one, other = (
        load_file(root / name / "preference_heads.safetensors") for name in (out, "alone")
    )
    assert all((one[key] == other[key]).all() for key in one)


@pytest.mark.exhaustive
def test_two_ray_workers_give_the_loss_curve_of_one_and_survive_a_killed_worker(root, alone):
    process = start(root, "two", "--workers", "2")
    try:
        wait_for(root / "two.run" / "stage1" / "step-00000005", process)
        found = subprocess.run(
            ["pgrep", "-f", "ray::RayTrainWorker"], capture_output=True, text=True, check=False
        )
        workers = found.stdout.split()
        assert len(workers) == 2, workers
        os.kill(int(workers[-1]), signal.SIGKILL)
        assert process.wait(600) == 0, (root / "two.log").read_text()[-3000:]
    finally:
        process.terminate()  # Ray ends its own processes when its driver goes in order
        process.wait(60)
    assert "RayTrainWorker" in (root / "two.log").read_text()
    found = json.loads((root / "two" / "history.json").read_text())
    assert [row["step"] for row in found] == [row["step"] for row in alone]
    for one, other in zip(found, alone, strict=True):
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=0.01, abs=1e-3)
