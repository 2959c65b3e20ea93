"""What a part of a run will take is said before it begins, and what does not fit is refused."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from pad_vllm.training import work_estimate
from pad_vllm.training.work_estimate import WorkEstimate, require_within

GIB = 2**30


@pytest.fixture
def half_a_gib_left(monkeypatch):
    usage = SimpleNamespace(free=GIB // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def test_tokens_and_room_are_said(half_a_gib_left, tmp_path):
    said = WorkEstimate(12_345, GIB // 4).announcement("teacher", tmp_path / "not" / "there")
    assert said == "teacher: 12,345 tokens to read, 0.25 GiB to keep of 0 GiB"
    assert " 0.00123 GiB to keep" in WorkEstimate(1, int(0.001234 * GIB)).announcement(
        "x", tmp_path
    )


def test_what_the_disk_has_no_room_for_is_refused_with_the_ways_out(half_a_gib_left, tmp_path):
    with pytest.raises(ValueError, match=r"1\.0 GiB would be kept in .* 0\.5 GiB left.*--uncached"):
        WorkEstimate(1, GIB).announcement("fork activations", tmp_path)


def test_the_folder_need_not_exist_yet(tmp_path):
    assert work_estimate._existing(tmp_path / "a" / "b") == tmp_path


def test_a_budget_below_what_every_epoch_reads_is_refused_with_the_ways_out():
    require_within(1.0, WorkEstimate(1, GIB))
    with pytest.raises(ValueError, match=r"--cache-gib 0\.5: .*takes 1\.00 GiB.*--uncached"):
        require_within(0.5, WorkEstimate(1, GIB))
