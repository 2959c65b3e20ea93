"""Every stage of training and judging on a base on one accelerator, and on two, without numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("stages_on_pretended_devices.py")
STAGES = (
    "pairs",
    "pairs, heads only",
    "scores",
    "prompt",
    "prompt, heads only",
    "prefixes",
    "judging",
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("devices", [1, 2])
def test_no_stage_mixes_devices_and_none_computes_beside_the_base(devices):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(devices)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert tuple(found) == STAGES
    for name, stage in found.items():
        assert not stage["error"], (name, stage["error"])
        assert not stage["products on the CPU"], name
