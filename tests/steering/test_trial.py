"""A first look at an adapter: what is asked of the engine, and what there is to read."""

from __future__ import annotations

import pytest
import tiny

from pad_vllm.steering import trial
from pad_vllm.steering.guided_answers import DrawnAnswer


@pytest.fixture
def folder(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    return tiny.write_adapter(
        base, tmp_path / "adapter", fork_layer=2, std=0.1, dimensions=("warm", "brief")
    )


@pytest.mark.parametrize(("loss", "said"), [(2.0, "2.7"), (None, "-")])
def test_each_dimension_is_tried_and_three_of_its_answers_are_shown(
    folder, monkeypatch, loss, said
):
    asked = []

    def answers(batch):
        asked.append(batch)
        rows = [f"{c.name} says\nthis " * 12 for c in batch.conditions]
        return [[[DrawnAnswer(text, (5, 6), loss)] * len(batch.prompts) for text in rows]]

    monkeypatch.setattr(trial, "draw_answers", answers)
    lines = trial.trial("base", str(folder), "float32")
    (batch,) = asked
    assert [c.weights for c in batch.conditions] == [{}, {"warm": 1.0}, {"brief": 1.0}]
    assert batch.decodings[0].dtype == "float32"
    assert [line.split()[0] for line in lines[1:4]] == ["unguided", "+warm", "+brief"]
    assert lines[1].split()[2] == said
    shown = [line for line in lines if line in trial.QUESTIONS]
    assert shown == list(trial.QUESTIONS[:3])
    assert max(len(part) for line in lines for part in line.split("\n")) <= 100
