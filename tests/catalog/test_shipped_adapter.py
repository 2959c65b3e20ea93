"""The adapters that ship: whole, small, and the same wherever they were made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.catalog.model_downloads import DOWNLOADABLE_MODELS
from pad_vllm.catalog.name_resolution import resolve_adapter

SHIPPED = (
    ("smollm2-135m", "demo"),
    ("smollm2-135m", "demo-trunk"),
    ("qwen2.5-coder-0.5b", "demo"),
    ("qwen2.5-coder-0.5b", "demo-trunk"),
)


@pytest.fixture(params=SHIPPED, ids=" ".join)
def shipped(request):
    return request.param


@pytest.fixture
def base(shipped):
    return shipped[0]


@pytest.fixture
def folder(shipped):
    base, name = shipped
    return Path(resolve_adapter(name, base))


def test_it_loads_and_no_dimension_has_a_head_of_zeros(folder, base):
    adapter = load_adapter(folder)
    assert adapter.config.heads_only == folder.name.endswith("-demo")
    assert adapter.config.backbone.architectures == (DOWNLOADABLE_MODELS[base].architecture,)
    assert len(adapter.config.dimensions) == len(adapter.head_B)
    assert adapter.head_B.flatten(1).any(-1).all()
    assert adapter.config.no_repeat


def test_the_larger_bases_has_a_learned_prefix_of_each_dimension():
    adapter = load_adapter(resolve_adapter("demo", "qwen2.5-coder-0.5b"))
    assert set(adapter.prefixes) == set(adapter.config.dimensions)


@pytest.mark.parametrize("base", ["smollm2-135m", "qwen2.5-coder-0.5b"])
def test_both_of_a_base_have_the_same_dimensions(base):
    heads, trunk = (
        load_adapter(resolve_adapter(name, base)).config.dimensions
        for name in ("demo", "demo-trunk")
    )
    assert heads == trunk


def test_its_card_says_what_each_dimension_does(folder, base):
    card = (folder / "README.md").read_text("utf-8")
    assert "## Steering" in card
    for name in load_adapter(folder).config.dimensions:
        assert f"| PAD +{name} |" in card
        assert f"| PAD -{name} |" in card
        if folder.name.endswith("-demo"):
            assert re.search(rf"\| {name} \| heads \| .* \| yes \|\n", card)  # its dose
        if (base, folder.name) == ("qwen2.5-coder-0.5b", "qwen2.5-coder-0.5b-demo"):
            assert f"| prefix +{name} |" in card


def test_its_card_names_a_revision_that_is_committed(folder):
    revisions = re.findall(
        r"^Revision (\S+)\.", (folder / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert revisions
    assert not [name for name in revisions if name.endswith("-dirty")]


def test_no_file_names_a_folder_of_the_machine_that_made_it(folder):
    for file in folder.rglob("*.[jm][sd]*"):
        assert not re.search(r"[\"' =](/|~|[A-Z]:\\)\w", file.read_text("utf-8")), file


def test_it_is_small(folder):
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 4 * 2**20
