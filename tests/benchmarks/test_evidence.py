"""Evidence goes on where it stopped, and every command in its table has the options it uses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import evidence

COMMANDS = json.loads(evidence.COMMANDS.read_text())
FIELDS = dict.fromkeys(("prompts", "some", "judge", "learn", "tokens"), "8")
ROOT = Path(__file__).parents[2]


def test_a_step_whose_result_exists_is_not_run_again_and_one_that_fails_is_reported(tmp_path):
    result = tmp_path / "a.json"
    program = "import sys, pathlib; pathlib.Path(sys.argv[1]).touch(exist_ok=False)"
    step = evidence.EvidenceStep("a", [sys.executable, "-c", program, str(result)], result)
    log = tmp_path / "log"
    assert evidence.run_step(step, log)
    assert evidence.run_step(step, log)  # it would fail a second time
    writes_nothing = evidence.EvidenceStep("b", [sys.executable, "-c", ""], tmp_path / "b")
    assert not evidence.run_step(writes_nothing, log)


def test_parts_of_the_prompts_do_not_meet(tmp_path):
    files = evidence.write_prompt_files(tmp_path, None, smoke=False)
    parts = {name: Path(path).read_text().splitlines() for name, path in files.items()}
    assert [len(parts[n]) for n in ("prompts", "some", "judge", "learn")] == [50, 20, 40, 20]
    assert not {*parts["prompts"]} & {*parts["judge"], *parts["learn"]}
    assert not {*parts["judge"]} & {*parts["learn"]}


@pytest.mark.parametrize("smoke", [False, True])
def test_every_step_is_a_script_that_is_there_with_options_it_has(tmp_path, smoke):
    for step in evidence.make_steps(COMMANDS, FIELDS, tmp_path, smoke=smoke):
        _, _, module, *argv = step.argv
        if module == "pad_vllm":
            continue
        files = [f"{module.replace('.', '/')}.py", "benchmarks/common/arguments.py"]
        text = "".join((ROOT / file).read_text() for file in files)
        for word in argv:
            assert not word.startswith("--") or f'"{word}"' in text, (step.name, word)
        assert str(step.result) in step.argv
