"""What every process of vLLM pays for PAD being installed: nothing beyond vLLM's own imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

REGISTER = """
import json, sys
# What PAD wraps of vLLM, with all that vLLM imports for it.
import pad_vllm.vllm_api.patches.front_end_checks, pad_vllm.vllm_api.startup_probe
import pad_vllm.vllm_api.patches.reserved_blocks
before = set(sys.modules)
from pad_vllm.plugin import register
register()
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture(scope="module")
def imported():
    done = subprocess.run(
        [sys.executable, "-c", REGISTER], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_registering_imports_no_library(imported):
    assert [name for name in imported if name.partition(".")[0] != "pad_vllm"] == []


def test_registering_imports_the_look_at_a_config_and_nothing_of_adapters_engines_or_text(
    imported,
):
    packages = {"pad_vllm.serving.start"}
    ours = {name for name in imported if name.count(".") >= 2 or name == "pad_vllm.persrm"}
    assert ours - packages == {
        "pad_vllm.serving.registration",
        "pad_vllm.serving.start.pad_activation",
        "pad_vllm.vllm_api.plugin_state",
    }
