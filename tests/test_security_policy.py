"""Every test that SECURITY.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
POLICY = (TESTS.parent / "SECURITY.md").read_text("utf-8")


def test_every_threat_has_a_test_that_exists():
    section = POLICY[POLICY.index("| threat |") :].split("\n\n")[0]
    threats = section.splitlines()[2:]
    assert threats
    for row in threats:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (TESTS / file).read_text("utf-8"), f"{file}::{test}"
