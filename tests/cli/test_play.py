"""`pad-vllm play` as typed: the command line of `serve` that it becomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import tiny
from typer.testing import CliRunner

from pad_vllm.cli import app as cli
from pad_vllm.cli import play, serve
from pad_vllm.serving.start.dimension_job_settings import RUNTIME_ADAPTERS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("play")
    base = tiny.checkpoint("llama", root / "base")
    layers = tiny.config("llama").num_hidden_layers
    tiny.write_adapter(base, root / "heads", fork_layer=layers, std=0.1, dimensions=("warm",))
    tiny.write_adapter(base, root / "forked", fork_layer=2, std=0.1, dimensions=("warm",))
    return root


@pytest.fixture
def typed(monkeypatch, tmp_path, folders):
    """Types a command: (its result, the command line that vLLM would get, announcers started)."""
    calls, announcers = [], []
    monkeypatch.setenv("PAD_VLLM_CACHE", str(tmp_path))
    monkeypatch.setenv(RUNTIME_ADAPTERS, "")
    monkeypatch.delenv(RUNTIME_ADAPTERS)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(serve, "resolve_base", lambda base: base)
    for module in (serve, play):
        monkeypatch.setattr(module, "is_cpu_build", lambda: True)
    monkeypatch.setattr(play, "device_dtype", lambda: "float32")
    monkeypatch.setattr(play.subprocess, "Popen", lambda command, **_: announcers.append(command))
    monkeypatch.setattr(serve.os, "execv", lambda program, argv: calls.append(argv))

    def run(*argv):
        result = CliRunner().invoke(cli.app, ["play", *argv])
        return result, calls[-1] if calls else None, announcers

    return run


def value(argv, flag):
    assert argv.count(flag) == 1
    return argv[argv.index(flag) + 1]


def settings(argv):
    return json.loads(value(argv, "--additional-config"))["pad"]


def test_without_arguments_it_serves_the_demo_with_page_jobs_and_profiles(typed, tmp_path):
    result, argv, (announcer,) = typed()

    assert result.exit_code == 0, result.output
    assert argv[argv.index("serve") + 1] == "smollm2-135m"
    pad = settings(argv)
    assert pad["adapter"].endswith("smollm2-135m-demo")
    assert pad["page"] is pad["dimension_jobs"] is True
    assert pad["adapter_root"].startswith(str(tmp_path))
    assert pad["profiles"].startswith(str(tmp_path))
    assert pad["profile_reader"] == "cpu"
    assert os.environ[RUNTIME_ADAPTERS] == "True"
    assert announcer[-1] == "http://127.0.0.1:8000"


def test_it_listens_on_this_machine_and_lets_no_other_sites_page_in(typed):
    _, argv, _ = typed("--port", "9001")

    assert value(argv, "--host") == "127.0.0.1"
    assert json.loads(value(argv, "--allowed-origins")) == [
        "http://127.0.0.1:9001",
        "http://localhost:9001",
    ]


def test_flags_of_vllm_and_of_serve_win_over_its_defaults(typed, folders):
    flags = ["--max-model-len=512", "--dtype", "bfloat16", "--profiles", "/p.db"]
    _, argv, (announcer,) = typed(
        "org/base", "--adapter", str(folders / "heads"), "--host", "0.0.0.0", *flags, "--open"
    )

    assert "--max-model-len=512" in argv
    assert "--max-model-len" not in argv
    assert value(argv, "--dtype") == "bfloat16"
    assert value(argv, "--host") == "0.0.0.0"
    assert settings(argv)["profiles"] == "/p.db"
    assert announcer[-2:] == ["http://localhost:8000", "--open"]


def test_a_large_base_is_opened_once_more_only_where_that_is_asked_for(typed, monkeypatch):
    monkeypatch.setattr(play, "_SMALL_BASE", 10_000_000)
    assert "profile_reader" not in settings(typed()[1])
    assert settings(typed("--profile-reader", "cuda:1")[1])["profile_reader"] == "cuda:1"
    monkeypatch.setattr(play, "_SMALL_BASE", 300_000_000)
    assert settings(typed("--profile-reader", "")[1])["profile_reader"] == ""
    assert "learn_from_conversations" not in settings(typed()[1])
    assert settings(typed("--learn-from-conversations")[1])["learn_from_conversations"] is True


def test_an_open_host_without_a_key_is_warned_of(typed):
    assert "--api-key" in typed("--host", "0.0.0.0")[0].stderr
    assert "--api-key" not in typed("--host", "0.0.0.0", "--api-key", "secret")[0].stderr


def test_a_base_that_is_left_out_may_be_followed_by_flags(typed):
    result, argv, _ = typed("--max-num-seqs", "7")

    assert result.exit_code == 0, result.output
    assert argv[argv.index("serve") + 1] == "smollm2-135m"
    assert value(argv, "--max-num-seqs") == "7"


def test_an_adapter_that_no_head_can_join_has_a_page_without_jobs(typed, folders):
    result, argv, _ = typed("org/base", "--adapter", str(folders / "forked"))

    assert settings(argv)["page"] is True
    assert "dimension_jobs" not in settings(argv)
    assert "heads only" in result.stderr


def test_instructions_need_no_adapter(typed):
    result, argv, _ = typed("org/base", "--adapter", "none", "--instructions")

    assert result.exit_code == 0, result.output
    assert not {"adapter", "profiles", "profile_reader"} & set(settings(argv))
    assert settings(argv)["instructions"] is True


def test_what_jobs_made_before_is_served_again(typed, folders, tmp_path):
    heads = str(folders / "heads")
    made = json.loads(value(typed("org/base", "--adapter", heads)[1], "--additional-config"))["pad"]
    folder = f"{made['adapter_root']}/5-pirate/merged"
    layers = tiny.config("llama").num_hidden_layers
    os.makedirs(os.path.dirname(folder))  # noqa: PTH103, PTH120 a path as text
    names = ("warm", "pirate")
    tiny.write_adapter(folders / "base", folder, fork_layer=layers, std=0.1, dimensions=names)
    _, argv, _ = typed("org/base", "--adapter", heads)

    assert settings(argv)["adapters"] == {"with-pirate": folder}


def test_the_address_is_printed_when_the_page_answers():
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    command = [sys.executable, "-m", "pad_vllm.serving.page.announce_page", url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    server.shutdown()

    assert f"The page: {url}/pad/" in said
