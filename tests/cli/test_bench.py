"""`pad-vllm bench` as typed: what there is, what is handed on, and with which exit code it ends."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from pad_vllm.cli import app as cli
from pad_vllm.cli import bench

ECHO = '"""Says its arguments."""\nimport sys\nif __name__ == "__main__":\n    sys.exit(len(sys.argv))\n'


@pytest.fixture
def run(monkeypatch, tmp_path):
    (tmp_path / "echo.py").write_text(ECHO)
    (tmp_path / "shared.py").write_text('"""No benchmark."""\n')
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    return lambda *argv: CliRunner().invoke(cli.app, ["bench", *argv])


def test_without_a_name_all_are_listed_with_what_they_measure(run):
    result = run()
    assert result.exit_code == 0
    assert result.output == "echo         Says its arguments.\n"


def test_a_script_gets_its_own_arguments_and_its_exit_code_is_the_commands(run):
    assert run("echo", "--batches", "1", "--help").exit_code == 4


def test_another_name_is_refused_with_those_there_are(run):
    result = run("nothing")
    assert result.exit_code == 1
    assert "there is no benchmark nothing; there are echo" in result.output


def test_an_installed_package_has_none_and_says_where_they_are(run, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "site-packages" / "benchmarks")
    result = run("echo")
    assert result.exit_code == 1
    assert "come with the repository" in result.output


def test_every_benchmark_of_the_repository_says_in_a_line_what_it_measures():
    found = bench._scripts()
    assert {"speed", "cost", "peers"} <= set(found)
    assert all(found.values())
