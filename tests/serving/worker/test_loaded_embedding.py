"""The token embedding of a loaded base, by which one is known whose weights are in no file."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn

pytest.importorskip("vllm")

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.serving.worker import loaded_embedding
from pad_vllm.serving.worker.loaded_embedding import loaded_embedding_sample


class Embedding(nn.Module):
    """A part of a token embedding, rows `first` to `stop`, padded with zeros as vLLM pads it."""

    def __init__(self, rows, first, stop):
        super().__init__()
        padding = torch.zeros(7, rows.shape[1])
        self.weight = nn.Parameter(torch.cat((rows[first:stop], padding)))
        self.shard_indices = SimpleNamespace(org_vocab_start_index=first, org_vocab_end_index=stop)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(loaded_embedding, "VocabParallelEmbedding", Embedding)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A backbone with the sample of its file, and its embedding."""
    folder = tiny.checkpoint("llama", tmp_path_factory.mktemp("base"))
    rows = tiny.model("llama").model.embed_tokens.weight.detach()
    return Backbone.from_checkpoint(folder), rows


def test_the_sample_of_a_loaded_model_is_that_of_its_file(made):
    backbone, rows = made
    model = nn.Sequential(nn.Linear(2, 2), Embedding(rows, 0, len(rows)))
    trained = backbone.embedding_sample
    assert loaded_embedding_sample(model, backbone, trained) == pytest.approx(trained)


@pytest.mark.parametrize(("first", "stop"), [(0, 170), (170, 333)])
def test_each_rank_compares_its_own_rows(made, first, stop):
    backbone, rows = made
    trained = backbone.embedding_sample
    assert loaded_embedding_sample(
        Embedding(rows, first, stop), backbone, trained
    ) == pytest.approx(trained)
    others = loaded_embedding_sample(Embedding(rows + 1, first, stop), backbone, trained)
    changed = [one != other for one, other in zip(others, trained, strict=True)]
    assert 10 < sum(changed) < 22


def test_a_stage_without_embedding_has_no_sample(made):
    backbone, _ = made
    assert loaded_embedding_sample(nn.Linear(2, 2), backbone, backbone.embedding_sample) is None
