"""What tests of benchmarks share."""

from __future__ import annotations

import pytest
import scripted_engine as scripted


@pytest.fixture
def scripted_engine(tmp_path, monkeypatch):
    """A tiny base, heads only that instructions trained, an engine whose answers follow its conditions."""
    return scripted.make_scripted_engine(tmp_path, monkeypatch)
