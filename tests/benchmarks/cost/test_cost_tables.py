"""Rows of the cost tables from what was counted, measured, said and used."""

from __future__ import annotations

import time

import pytest
import torch

from benchmarks.cost import device_memory, estimates, revisions
from benchmarks.speed import reading

GIB = 2**30


def test_a_peak_is_split_into_weights_what_is_trained_and_the_rest():
    parts = {"step": {"start": 0, "peak": 10 * GIB}, "trunk": {"start": 0, "peak": 7 * GIB}}
    result = {"weights": 6 * GIB, "trained": GIB // 16, "parts": parts}
    step, trunk = device_memory.rows_at_8b({"train": result})
    assert (step["weights"], step["trained"], step["other"], step["peak"]) == (6.0, 1.0, 3.0, 10.0)
    assert (trunk["trained"], trunk["other"]) == (0.25, 0.75)
    assert "| train | step | 6.0 | 1.0 | 3.0 | 10.0 |" in device_memory.table([step])


def test_a_check_compares_what_rises_above_what_was_there():
    counted = {"weights": 100, "parts": {"step": {"start": 100, "peak": 200}}}
    measured = {"parts": {"step": {"start": 5000, "peak": 5150}}}
    [row] = device_memory.check_rows("base", {"train": (counted, measured)})
    assert (row["measured_share"], row["share_with_weights"]) == (1.5, 1.25)


def test_a_revisions_share_is_of_the_firsts_cpu_seconds():
    used = {
        "train": {
            name: [revisions.Used(seconds, 0.0, 1.0, 1.0)]
            for name, seconds in (("before", 10.0), ("after", 4.0))
        }
    }
    rows = revisions.result_rows(used)
    assert [row["share"] for row in rows] == [1.0, 0.4]


def test_the_cpu_seconds_and_the_failure_of_a_command_are_its_own(tmp_path):
    code = "import time\nwhile time.process_time() < 0.3: pass"
    used = revisions.run_measured(["python3", "-c", code], {}, tmp_path / "log")
    assert 0.25 < used.cpu_seconds < 2
    (tmp_path / "somewhere.py").write_text("raise SystemExit(0)")
    here = ["python3", "-c", "import somewhere"]  # no module of the folder that this runs in
    assert revisions.run_measured(here, {}, tmp_path / "log").cpu_seconds < 2
    with pytest.raises(RuntimeError, match="ended with 3"):
        revisions.run_measured(["python3", "-c", "raise SystemExit(3)"], {}, tmp_path / "log")


def test_what_was_said_is_compared_with_what_was_used_until_the_part_ended(tmp_path):
    now = time.monotonic()
    watched = estimates.Watched()
    watched.lines = [
        (now, "fork activations: 1,000 tokens to read, 0.50 GiB to keep of 9 GiB", 10),
        (now + 6, "fork activations: 5 of 20, about 0.2 minutes left", 300),
        (now + 18, "cache: 18 s", 1110),
    ]
    settings = estimates.Settings("b", (), str(tmp_path / "out"))
    read, kept, left = estimates.compared(watched, settings, tmp_path)
    assert (read["said"], read["used"]) == (1000.0, 1100)
    assert (kept["said"], kept["used"]) == (0.5, 0.0)
    assert (left["said"], round(left["used"]), left["share"]) == (12.0, 12, 1.0)


def test_the_time_left_is_compared_up_to_the_end_of_its_loop(tmp_path):
    watched = estimates.Watched()
    watched.lines = [
        (10.0, "the teacher's rewards: 16 of 48, about 42 seconds left", 0),
        (30.0, "the teacher's rewards: 32 of 48, about 22 seconds left", 0),
        (50.0, "the teacher's rewards: 0 of 16", 0),  # of the prompts held out
        (70.0, "teacher: 70 s", 0),
        (80.0, "stage 1 step 1 of 6: loss 2.1, about 5 minutes left", 0),
        (90.0, "stage 1 step 6 of 6: validation pairs", 0),
        (100.0, "stage1: 30 s", 0),
    ]
    settings = estimates.Settings("b", (), str(tmp_path / "out"))
    found = estimates.compared(watched, settings, tmp_path)
    assert [(row["part"], row["said"], row["used"]) for row in found[1:]] == [
        ("the teacher's rewards", 42.0, 40.0),
        ("stage 1", 300.0, 20.0),
    ]


def test_readers_read_the_same_tokens_in_batches_of_about_one_length():
    sequences = reading.make_sequences(40, 300)
    padded = reading.batches(sequences)
    assert [len(batch) for batch in padded] == [16, 16, 8]
    assert [len(a) + len(b) for a, b in sequences] == [
        len(a) + len(b) for a, b in reading.make_sequences(40, 50_000)
    ]
    rows = reading.result_rows({"plain": [1.0, 2.0], "logits": [2.0, 2.0], "x": [2.0, 2.0]}, 100)
    assert [row["share"] for row in rows] == [1.0, 0.75, 0.75]
    assert torch.is_tensor(padded[0])
