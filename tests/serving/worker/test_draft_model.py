"""Of the models that vLLM hands to PAD's loader, the drafting one is not PAD's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.config import LoadConfig

from pad_vllm.config import COMPILE_CACHE_KEY, PAD_KEY
from pad_vllm.serving.worker import model_loader
from pad_vllm.serving.worker.model_loader import _is_draft_model

TARGET, DRAFT = object(), object()


@pytest.mark.parametrize(
    ("drafting", "loaded", "expected"),
    [
        (None, TARGET, False),
        (TARGET, TARGET, False),  # n-grams: vLLM names the target as its own draft
        (DRAFT, TARGET, False),
        (DRAFT, DRAFT, True),
    ],
)
def test_a_model_is_draft_where_it_is_named_as_such_and_is_not_the_target(
    drafting, loaded, expected
):
    speculative = SimpleNamespace(draft_model_config=drafting, target_model_config=TARGET)
    config = SimpleNamespace(speculative_config=speculative if drafting else None)
    assert _is_draft_model(config, loaded) is expected


@pytest.mark.parametrize("load_format", ["auto", "fastsafetensors"])
def test_a_draft_model_is_what_vllm_loads_in_the_bases_format(monkeypatch, load_format):
    """MTP layers are in the base's own checkpoint."""
    asked = []

    class Inner:
        def __init__(self, load_config):
            self.load_format = load_config.load_format

        def load_model(self, vllm_config, model_config):
            asked.append((self.load_format, model_config))
            return DRAFT

    monkeypatch.setattr(model_loader, "get_model_loader", Inner)
    loader = model_loader.PADModelLoader(LoadConfig(load_format="pad"))
    speculative = SimpleNamespace(draft_model_config=DRAFT, target_model_config=TARGET)
    settings = {
        "adapter": "somewhere",
        "load_format": load_format,
        COMPILE_CACHE_KEY: "made by PAD",
    }
    # Of a draft model's config, vLLM's own copy, not much else is the base's.
    config = SimpleNamespace(speculative_config=speculative, additional_config={PAD_KEY: settings})
    assert loader.load_model(config, DRAFT) is DRAFT
    assert asked == [(load_format, DRAFT)]
