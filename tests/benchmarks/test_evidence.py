"""Evidence goes on where it stopped, and every command it knows has the options it names."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import evidence
import pytest

TABLE = json.loads((Path(evidence.__file__).parent / "evidence.json").read_text())
PLACES = dict.fromkeys(("prompts", "some", "judge", "learn", "tokens"), "8")


def test_a_step_whose_result_is_there_is_not_made_again_and_one_that_fails_is_told(tmp_path):
    made = tmp_path / "a.json"
    program = "import sys, pathlib; pathlib.Path(sys.argv[1]).touch(exist_ok=False)"
    step = evidence.Step("a", [sys.executable, "-c", program, str(made)], made)
    log = tmp_path / "log"
    assert evidence.run(step, log)
    assert evidence.run(step, log)  # it would fail a second time
    assert not evidence.run(evidence.Step("b", [sys.executable, "-c", ""], tmp_path / "b"), log)


def test_parts_of_the_prompts_do_not_meet(tmp_path):
    files = evidence.prompt_files(tmp_path, None, smoke=False)
    parts = {name: Path(path).read_text().splitlines() for name, path in files.items()}
    assert [len(parts[n]) for n in ("prompts", "some", "judge", "learn")] == [50, 20, 40, 20]
    assert not {*parts["prompts"]} & {*parts["judge"], *parts["learn"]}
    assert not {*parts["judge"]} & {*parts["learn"]}


@pytest.mark.parametrize("smoke", [False, True])
def test_every_step_is_a_script_that_is_there_with_options_it_has(tmp_path, smoke):
    for step in evidence.steps(TABLE, PLACES, tmp_path, smoke):
        if step.argv[1] == "-m":
            continue
        text = "".join(
            (Path(step.argv[1]).parent / name).read_text()
            for name in (Path(step.argv[1]).name, "arguments.py")
        )
        for word in step.argv[2:]:
            assert not word.startswith("--") or f'"{word}"' in text, (step.name, word)
        assert str(step.made) in step.argv
