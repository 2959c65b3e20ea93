"""Of the models that vLLM hands to PAD's loader, the drafting one is not PAD's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

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
