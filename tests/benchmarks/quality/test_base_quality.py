"""Worse copies of a base: their weights, that an engine opens them, and the whole script."""

from __future__ import annotations

import pytest
import tiny
import torch

from benchmarks.quality import base_quality
from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.manifest import read_config


def test_rounding_keeps_values_on_its_grid():
    torch.manual_seed(0)
    w = torch.randn(4, 64)
    eight, four = base_quality.round_to_bits(8)(w), base_quality.round_to_bits(4)(w)
    assert (eight - w).abs().max() <= w.abs().max() / 254 + 1e-6
    assert (four - w).abs().max() > (eight - w).abs().max()
    for row in four.reshape(-1, 32):
        assert len(row.unique()) <= 15
    torch.testing.assert_close(base_quality.round_to_bits(4)(four), four)
    assert not base_quality.round_to_bits(8)(torch.zeros(2, 32)).any()


def test_noise_is_a_share_of_the_weights_spread():
    w = torch.randn(64, 64) * 3
    more = base_quality.add_noise(0.1, 0)(w) - w
    assert float(more.std() / w.std()) == pytest.approx(0.1, rel=0.05)


def test_only_linear_layers_of_the_decoder_are_changed():
    model = tiny.model("qwen2")
    embedding = model.model.embed_tokens.weight.clone()
    norm = model.model.layers[0].input_layernorm.weight.clone()
    base_quality.change_linear_weights(model, torch.zeros_like)
    assert not model.model.layers[-1].mlp.down_proj.weight.any()
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    assert torch.equal(model.model.layers[0].input_layernorm.weight, norm)


def test_the_script_has_every_copy_answer_with_the_good_bases_heads(scripted_engine, monkeypatch):
    pytest.importorskip("sklearn")
    seen = []
    draw = scripted_engine.draw

    def look(batch):
        if batch.adapter is not None:
            config = read_config(batch.adapter)
            assert config.backbone == Backbone.from_checkpoint(batch.base, config.backbone.name)
            seen.append(config.backbone.fingerprint)
        return draw(batch)

    monkeypatch.setattr("benchmarks.common.answer_cache.draw_answers", look)
    picture = scripted_engine.folder / "base_quality.png"
    found = scripted_engine.run(
        monkeypatch, base_quality.main, "--noises", "0.5", "--picture", str(picture)
    )
    assert [r["base"] for r in found["rows"]] == ["as it is", "8 bits", "4 bits", "noise 0.5"]
    assert len(set(seen)) == 4
    first, *others = found["rows"]
    assert first["text"] == 1.0
    assert first["wins"] == first["over_good"] == [1.0, 0.61, 1.0]
    assert len({r["text"] for r in others}) == 3
    assert picture.stat().st_size > 1000
    assert (
        scripted_engine.run(monkeypatch, base_quality.main, "--noises", "0.5")["rows"]
        == found["rows"]
    )
    assert len(seen) == 4
