"""Which columns of the logits are tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny

from pad_vllm.serving.start import vocabulary


def config(tokenizer, size, *, skip=False):
    model = SimpleNamespace(
        get_vocab_size=lambda: size,
        skip_tokenizer_init=skip,
        tokenizer=str(tokenizer),
        tokenizer_revision=None,
        trust_remote_code=False,
    )
    return SimpleNamespace(model_config=model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tokenizer")
    tiny.tokenizer().save_pretrained(made)
    return made


def test_columns_behind_the_last_token_do_not_count(folder):
    known = max(tiny.tokenizer().get_vocab().values()) + 1
    assert vocabulary.num_token_columns(config(folder, known + 77)) == known
    assert vocabulary.num_token_columns(config(folder, known - 7)) == known - 7


def test_without_a_tokenizer_all_columns_count(folder, tmp_path, caplog):
    assert vocabulary.num_token_columns(config(folder, 1000, skip=True)) == 1000
    assert not caplog.records
    assert vocabulary.num_token_columns(config(tmp_path, 1000)) == 1000
    assert "all 1000 columns of the logits may be candidates" in caplog.text
