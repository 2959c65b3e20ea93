"""The cost of each fork depth: ratios within a round, and a model's shape without weights."""

from __future__ import annotations

import json

import pytest

from benchmarks.common import bare_models, fork_step_times
from benchmarks.speed import fork_depths
from pad_vllm.adapter.backbone.backbone import Backbone


def test_ratios_are_of_the_same_round():
    found = {
        (None, False): [(1.0, 0.010), (1.0, 0.020), (1.0, 0.030)],
        (3, True): [(1.5, 0.011), (1.5, 0.024), (1.5, 0.033)],
        (3, False): [(1.0, 0.010), (1.0, 0.020), (1.0, 0.033)],
    }
    record = fork_step_times.fork_record(3, 8, found)
    assert record["plain_ms"] == pytest.approx(20.0)
    assert record["pad_ms"] == pytest.approx(24.0)
    assert (record["ratio"], record["least"], record["most"]) == (1.1, 1.1, 1.2)
    assert (record["unguided"], record["first"]) == (1.0, 1.5)
    row = "| 1 | 8 | 20.00 ms | 24.00 ms | 1.100x (1.100 to 1.200) | 1.000x | 1.500x |"
    assert fork_depths.table([record], 4)[2] == row


def test_a_bare_shape_is_a_backbone(tmp_path):
    base = bare_models.write_bare_model("llama-8b", tmp_path)
    known = Backbone.from_config(tmp_path)
    assert (known.num_layers, known.hidden_size, known.vocab_size) == (32, 4096, 128256)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert base == str(tmp_path)
