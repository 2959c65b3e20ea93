"""The scripts under benchmarks/ import each other by name, and so do their tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A tiny base, a taught adapter of heads alone, an engine that says how it was asked."""
    import asked as scene

    return scene.made(tmp_path, monkeypatch)
