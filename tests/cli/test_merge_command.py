"""`pad-vllm merge` as typed."""

from __future__ import annotations

import tiny
import torch
from typer.testing import CliRunner

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.cli.app import app


def run(*arguments):
    return CliRunner().invoke(app, ["merge", *map(str, arguments)], env={"COLUMNS": "200"})


def test_dimensions_are_taken_by_name_and_a_folder_says_what_it_holds(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    for name, dimensions in (("words", ("kind", "brief")), ("manner", ("warm",))):
        tiny.write_adapter(base, tmp_path / name, fork_layer=4, std=0.1, dimensions=dimensions)
    words, manner, out = (tmp_path / name for name in ("words", "manner", "out"))
    result = run(f"{words}:brief=0.5", manner, "--out", out, "--beta", "0.5")
    assert result.exit_code == 0, result.output
    assert "brief, warm" in result.output
    merged = load_adapter(out)
    assert merged.config.dimensions == ("brief", "warm")
    assert merged.config.beta == 0.5
    assert torch.equal(merged.head_B[0], 0.5 * load_adapter(words).head_B[1])
    assert "Preference dimensions: brief, warm. No LoRA" in (out / "README.md").read_text()


def test_the_adapter_that_ships_goes_by_its_name(tmp_path):
    result = run("demo:friendly", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert load_adapter(tmp_path / "out").config.dimensions == ("friendly",)


def test_what_does_not_fit_is_one_message(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    tiny.write_adapter(base, tmp_path / "forked", fork_layer=2, std=0.1, dimensions=("kind",))
    result = run(tmp_path / "forked", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "has a trunk" in result.output
    assert "NAME or NAME=FACTOR" in run(f"{tmp_path / 'forked'}:kind=x", "--out", "out").output
    assert "nowhere holds no" in run(tmp_path / "nowhere", "--out", tmp_path / "out").output
