"""A torchvision that was built for another torch is named with the way out, in every command."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pad_vllm.cli.error_reporting import report_errors
from pad_vllm.serving.launch import media_packages


@pytest.fixture
def broken_torchvision(tmp_path):
    """A folder for sys.path whose torchvision fails as CUDA's does beside a torch for CPUs."""
    for name in media_packages.MEDIA_PACKAGES:
        (tmp_path / f"{name}.py").touch()
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')"
    )
    return tmp_path


def test_what_does_not_import_is_named_with_the_command_that_removes_it(
    broken_torchvision, monkeypatch
):
    monkeypatch.syspath_prepend(str(broken_torchvision))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(media_packages, "MEDIA_PACKAGES", ("torchvision", "no_such_package"))
    with pytest.raises(ValueError, match="pip uninstall -y torchvision ") as refused:
        media_packages.require_media_packages_import()
    assert "no_such_package" not in str(refused.value)


def test_packages_that_are_not_there_are_no_obstacle(monkeypatch):
    monkeypatch.setattr(media_packages, "MEDIA_PACKAGES", ("no_such_package",))
    assert media_packages.require_media_packages_import() == "installed: none; none is broken"


def test_a_server_that_cannot_start_because_of_it_says_so_in_a_line(broken_torchvision, tmp_path):
    vllm = tmp_path / "vllm" / "entrypoints" / "cli"
    vllm.mkdir(parents=True)
    (vllm / "main.py").write_text("import torchvision")
    path = os.pathsep.join([str(broken_torchvision), *sys.path])
    result = subprocess.run(
        [sys.executable, "-m", "pad_vllm.serving.launch.vllm_program", "serve", "base"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Error: torchvision cannot be imported beside torch")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "raised",
    [
        "ModuleNotFoundError(\"Could not import module 'LlamaConfig'\")",  # Transformers
        "RuntimeError('operator torchvision::nms does not exist')",  # vLLM
    ],
)
def test_any_command_that_fails_because_of_it_says_so_in_a_line(broken_torchvision, raised):
    program = f"from pad_vllm.cli.error_reporting import report_errors\nwith report_errors(): raise {raised}"
    path = os.pathsep.join([str(broken_torchvision), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Error: torchvision cannot be imported beside torch" in result.stderr


def test_a_bug_stays_a_bug_where_every_package_imports(monkeypatch):
    monkeypatch.setattr(media_packages, "MEDIA_PACKAGES", ())
    with pytest.raises(RuntimeError, match="a bug"), report_errors():
        raise RuntimeError("a bug")
