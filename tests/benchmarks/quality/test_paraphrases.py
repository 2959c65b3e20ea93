"""Wordings of instructions: which pairs count as the same instruction, and their table."""

from __future__ import annotations

import torch

from benchmarks.quality import paraphrases


def test_wordings_are_compared_within_an_instruction_and_with_all_others():
    found = torch.eye(4) + 0.2 * (1 - torch.eye(4))
    found[0, 1] = found[1, 0] = 0.8
    found[2, 3] = found[3, 2] = 0.6
    rows, means = paraphrases.agreement(found, {"warm": ("1", "2"), "brief": ("3", "4")})
    assert rows[0] == {"wish": "warm", "same": [0.8, 0.8, 0.8], "other": [0.2, 0.2, 0.2]}
    assert means == {"same": 0.7, "other": 0.2}
    assert "| warm | 0.80 (0.80 to 0.80) | 0.20 (0.20 to 0.20) |" in paraphrases.table(rows)


def test_every_instruction_has_five_wordings():
    assert {len(some) for some in paraphrases.WORDINGS.values()} == {5}
