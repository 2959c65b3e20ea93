"""A quantised copy has the same embedding sample as its original; a rotated copy has another."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from pad_vllm.adapter.backbone import safetensors_headers
from pad_vllm.adapter.backbone.embedding_sample import SAMPLE_SIZE, sample_embedding, samples_match

V, H = 50, 16


@pytest.fixture
def embedding():
    return torch.randn(V, H, generator=torch.Generator().manual_seed(0)) * 0.05


def stored(folder, **tensors):
    folder.mkdir()
    named = {name.replace("__", "."): tensor.contiguous() for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors")
    return sample_embedding(safetensors_headers.stored_tensors(folder), V, H)


def test_the_sample_holds_values_of_the_embedding_from_its_first_to_its_last(tmp_path, embedding):
    sample = stored(tmp_path / "a", model__embed_tokens__weight=embedding, norm=torch.ones(H))
    assert len(sample) == SAMPLE_SIZE
    assert sample[0] == embedding[0, 0]
    assert sample[-1] == embedding[-1, -1]
    assert set(sample) <= set(embedding.flatten().tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_samples_match_for_another_dtype_and_packed_layers(tmp_path, embedding, dtype):
    embedding[0, 0] = 1e-7  # below what float16 holds exactly
    ours = stored(tmp_path / "a", embed__weight=embedding.bfloat16(), w=torch.ones(H, H))
    theirs = stored(
        tmp_path / "b",
        embed__weight=embedding.bfloat16().to(dtype),
        w=torch.ones(H, H, dtype=torch.int8),
        w_scale=torch.ones(H, 1),
    )
    assert samples_match(ours, theirs)
    assert samples_match(theirs, ours)


def test_rows_that_pad_the_vocabulary_are_not_sampled(tmp_path, embedding):
    ours = stored(tmp_path / "a", embed__weight=embedding)
    assert stored(tmp_path / "b", embed__weight=torch.cat((embedding, embedding))) == ours


def test_an_untied_lm_head_is_not_sampled(tmp_path, embedding):
    ours = stored(tmp_path / "a", model__embed__weight=embedding, lm_head__weight=-embedding)
    assert ours == stored(tmp_path / "b", model__embed__weight=embedding)


def test_samples_of_a_rotated_and_a_retrained_copy_do_not_match(tmp_path, embedding):
    ours = stored(tmp_path / "a", embed__weight=embedding)
    turn = torch.linalg.qr(torch.randn(H, H, generator=torch.Generator().manual_seed(1)))[0]
    assert not samples_match(ours, stored(tmp_path / "b", embed__weight=embedding @ turn))
    near = embedding + 2e-3 * torch.randn(V, H)
    assert not samples_match(ours, stored(tmp_path / "c", embed__weight=near))


def test_an_embedding_that_is_packed_or_not_finite_has_no_sample(tmp_path, embedding):
    packed = embedding.mul(1000).to(torch.int8)
    assert stored(tmp_path / "a", embed__weight=packed) is None
    assert stored(tmp_path / "b", embed__weight=embedding / 0) is None
    assert stored(tmp_path / "c", embed__weight=embedding[:-1]) is None


def test_samples_of_different_sizes_do_not_match():
    assert not samples_match((1.0, 2.0), (1.0,))
    assert not samples_match((float("nan"),), (float("nan"),))
