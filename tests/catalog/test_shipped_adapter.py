"""The adapter that ships: whole, small, and the same wherever it was made."""

from __future__ import annotations

import re
from pathlib import Path

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.name_resolution import resolve_adapter

FOLDER = Path(resolve_adapter("demo"))


def test_it_loads_and_no_dimension_has_a_head_of_zeros():
    adapter = load_adapter(FOLDER)
    assert adapter.config.heads_only
    assert len(adapter.config.dimensions) == len(adapter.head_B)
    assert adapter.head_B.flatten(1).any(-1).all()
    assert adapter.config.no_repeat


def test_its_card_has_a_steering_section():
    card = (FOLDER / "README.md").read_text("utf-8")
    assert "## Steering" in card
    for name in load_adapter(FOLDER).config.dimensions:
        assert f"| PAD +{name} |" in card
        assert f"| PAD -{name} |" in card


def test_no_file_names_a_folder_of_the_machine_that_made_it():
    for file in FOLDER.glob("*.[jm][sd]*"):
        assert not re.search(r"[\"' =](/|~|[A-Z]:\\)\w", file.read_text("utf-8")), file


def test_it_is_small():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8 * 2**20
