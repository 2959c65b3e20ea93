"""What a release has: one version, every file of the package in the wheel, complete sources."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from pad_vllm.version import __version__

ROOT = Path(__file__).parents[1]
NOT_RELEASED = (
    *(".ci/", ".dockerignore", ".gitignore", ".venv"),
    *("benchmarks/", "tests/benchmarks/"),
)
"""What stays in the repository. Of benchmarks/ the Python files go along, for the tests that import them."""


def files_of_checkout(*folders):
    """Those that git tracks, and new ones that it does not ignore."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}


def setup_py(*arguments):
    """Runs setup.py, whose warnings are errors here."""
    command = [sys.executable, "setup.py", "-q", *map(str, arguments)]
    environment = {key: os.environ[key] for key in os.environ if key != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr.lower(), result.stderr


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(tmp_path):
    expected = files_of_checkout("pad_vllm")
    setup_py("build", "-b", tmp_path)
    built = {str(f.relative_to(tmp_path / "lib")) for f in (tmp_path / "lib").rglob("*")}
    folders = {str(parent) for name in expected for parent in Path(name).parents}
    assert built - folders == expected


def test_the_source_archive_has_everything_but_what_stays_in_the_repository(tmp_path):
    expected = {
        name
        for name in files_of_checkout()
        if not name.startswith(NOT_RELEASED)
        or (name.startswith("benchmarks/") and name.endswith(".py"))
    }
    setup_py("egg_info", "--egg-base", tmp_path)
    sources = (tmp_path / "pad_vllm.egg-info" / "SOURCES.txt").read_text().splitlines()
    released = {name for name in sources if ".egg-info/" not in name}
    assert released == expected


def test_links_of_the_readme_lead_to_the_repository_from_the_package_index(tmp_path):
    setup_py("egg_info", "--egg-base", tmp_path)
    shown = (tmp_path / "pad_vllm.egg-info" / "PKG-INFO").read_text("utf-8").split("\n\n", 1)[1]
    targets = re.findall(r"\]\(([^)\s]+)\)", shown)
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []
    assert "](https://github.com/pad-vllm/pad_vllm/raw/main/docs/pictures/compare.png)" in shown
    assert "](https://github.com/pad-vllm/pad_vllm/blob/main/docs/requests.md)" in shown


def test_the_date_of_the_citation_is_that_of_the_changelog():
    said = re.search(r"^date-released: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert f"## [{__version__}] - {said[1]}\n" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_version_is_one_and_is_a_release():
    assert not Version(__version__).is_prerelease
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited[1] == __version__


def test_what_everybody_installs_is_what_serving_imports():
    """Extras hold the rest; those of vLLM hold vLLM alone."""
    wanted = [Requirement(text) for text in requires("pad-vllm")]
    core = {r.name.replace("-", "_") for r in wanted if "extra" not in str(r.marker)}
    files = [
        file
        for file in (ROOT / "pad_vllm").rglob("*.py")
        if not {"training", "steering", "evaluation"} & set(file.parts)
    ]
    imported = re.findall(
        r"^\s*(?:import|from) (\w+)", "\n".join(f.read_text() for f in files), re.MULTILINE
    )
    assert core <= set(imported)
    for extra in ("vllm", "cpu"):
        (only,) = [r for r in wanted if f'extra == "{extra}"' in str(r.marker)]
        assert only.name.startswith("vllm")
