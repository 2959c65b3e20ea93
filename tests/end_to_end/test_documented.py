"""What README.md and docs/ tell people to type, typed: offline, `vllm serve` in full, clients."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
import tiny
import typer
from documented_text import commands, snippets
from engine_processes import engine_slot, free_port, run, serving, tail

from pad_vllm.cli.app import app
from pad_vllm.serving.launch.serve_arguments import serve_argv

pytestmark = pytest.mark.engine


def snippet(file, word):
    (found,) = [one.code for one in snippets("python") if one.file == file and word in one.code]
    return found


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """BASE and PATH of the pages; the adapter has the dimensions that its requests name."""
    folder = tmp_path_factory.mktemp("documented")
    base = tiny.checkpoint("llama", folder / "base")
    dimensions = ("positive", "simple")
    path = tiny.write_adapter(
        base, folder / "adapter", fork_layer=2, std=0.1, dimensions=dimensions
    )
    return {"BASE": str(base), "PATH": str(path)}


def test_the_offline_snippet_answers(names, tmp_path):
    script, log = tmp_path / "offline.py", tmp_path / "log"
    given = {**names, "messages": [{"role": "user", "content": "Hello"}]}
    lines = [f"{name} = {value!r}" for name, value in given.items()]
    code = snippet("docs/serve.md", "LLM(").replace("llm.chat(", "answers = llm.chat(")
    code = code.replace(
        "    BASE,\n", "    BASE,\n    enforce_eager=True,\n"
    )  # to compile takes a minute
    script.write_text("\n".join([*lines, code, 'print("said", answers[0].outputs[0].token_ids)']))
    with engine_slot():
        assert run([script], log, {"VLLM_CPU_KVCACHE_SPACE": "1"}, 300) == 0, tail(log)
    assert "said [" in log.read_text("utf-8")


def test_vllm_serve_with_its_flags_answers_curl_and_the_openai_client(names, tmp_path, capsys):
    (command,) = commands("vllm serve")
    words = shlex.split(command.code)[1:]
    for name, value in names.items():
        words = [word.replace(name, value) for word in words]
    port = free_port()
    program = [sys.executable, "-m", "pad_vllm.serving.launch.vllm_program", *words]
    program += ["--port", port, "--served-model-name", "smollm2-135m", "--enforce-eager"]
    clients = [one for one in snippets("python") if "OpenAI(base_url" in one.code]
    (curl,) = [one for one in snippets("sh") if one.file == "docs/clients.md"]
    own = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}  # as in production
    with serving(program, tmp_path / "log", port, own) as url:
        assert {one.file for one in clients} == {"README.md", "docs/clients.md"}
        for client in clients:
            exec(client.code.replace("http://localhost:8000", url), {})
            assert capsys.readouterr().out.strip()
        code = curl.code.replace("http://localhost:8000", url)
        said = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
        assert '"unguided_tokens":0' in said.stdout.replace(" ", ""), said.stdout


def test_the_flags_of_vllm_behind_pad_vllm_serve_are_vllms():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(add_help=False))
    program = typer.main.get_command(app).commands["serve"]
    shown = [one for one in commands("pad-vllm") if one.code.startswith("pad-vllm serve ")]
    assert len(shown) > 10
    for one in shown:
        given = program.make_context("serve", shlex.split(one.code)[2:])
        options = given.params
        argv = serve_argv(
            options["base"],
            options["adapter"],
            given.args,
            engine=options["engine"],
            instructions=options["instructions"],
        )
        parser.parse_args(argv[1:])
