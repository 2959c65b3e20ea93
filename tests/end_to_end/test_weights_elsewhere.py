"""A base whose weights are not in its folder: known by its token embedding once it is loaded."""

from __future__ import annotations

import shutil

import pytest
import tiny
from engine_processes import EngineFailed, engine, pad
from mixed_requests import mixed_batch
from pytorch_twin import require_said

pytestmark = pytest.mark.engine

PROMPTS = [[3 + (7 * i + length) % 256 for i in range(length)] for length in (5, 40)]
ELSEWHERE = {"load_format": "elsewhere"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A base, an adapter with heads only, and the base's folder without its weights."""
    root = tmp_path_factory.mktemp("elsewhere")
    base = tiny.checkpoint("qwen2", root / "base")
    layers = tiny.config("qwen2").num_hidden_layers
    adapter = tiny.write_adapter(base, root / "adapter", fork_layer=layers, std=0.2, beta=1.0)
    bare = shutil.copytree(base, root / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    return base, adapter, bare


def test_the_bases_own_weights_are_guided_as_from_its_folder(made):
    base, adapter, bare = made
    requests = mixed_batch(adapter, PROMPTS, 8)
    job = {
        "llm": pad(bare, adapter, ELSEWHERE),
        "weights_from": str(base),
        "requests": requests,
        "record": True,
    }
    require_said("elsewhere", base, adapter, requests, engine(job))


def test_another_models_weights_are_refused(made, tmp_path):
    _, adapter, bare = made
    tiny.model("qwen2", seed=1).save_pretrained(tmp_path / "other")
    job = {"llm": pad(bare, adapter, ELSEWHERE), "weights_from": str(tmp_path / "other")}
    with pytest.raises(EngineFailed, match="token embedding is not that of"):
        engine(job)
