"""What README.md tells people to type, typed: the offline snippet, `vllm serve` in full, the client."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import tiny
from engine_processes import engine_slot, free_port, run, serving, tail

pytestmark = pytest.mark.engine

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def snippet(word):
    (found,) = [s for s in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if word in s]
    return found


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """BASE and PATH of the README; the adapter has the dimensions that its requests name."""
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
    code = snippet("LLM(").replace("llm.chat(", "answers = llm.chat(")
    code = code.replace(
        "    BASE,\n", "    BASE,\n    enforce_eager=True,\n"
    )  # to compile takes a minute
    script.write_text("\n".join([*lines, code, 'print("said", answers[0].outputs[0].token_ids)']))
    with engine_slot():
        assert run([script], log, {"VLLM_CPU_KVCACHE_SPACE": "1"}, 300) == 0, tail(log)
    assert "said [" in log.read_text("utf-8")


def test_vllm_serve_with_its_flags_answers_the_clients_snippet(names, tmp_path, capsys):
    (line,) = [s for s in README.replace("\\\n", " ").splitlines() if s[:14] == "    vllm serve"]
    for name, value in names.items():
        line = line.replace(name, value)
    port = free_port()
    command = [sys.executable, "-m", "pad_vllm.serving.launch.vllm_program", *shlex.split(line)[1:]]
    command += ["--port", port, "--served-model-name", "smollm2-135m", "--enforce-eager"]
    with serving(command, tmp_path / "log", port) as url:
        exec(snippet("OpenAI(").replace("http://localhost:8000", url), {})
    assert capsys.readouterr().out.strip()
