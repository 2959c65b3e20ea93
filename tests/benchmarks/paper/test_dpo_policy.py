"""Pairs that a policy is trained on: a prompt's best and worst response, where they differ enough."""

from __future__ import annotations

import json

from benchmarks.paper import dpo_policy


def line(prompt, *scores):
    responses = [{"text": f"says {s}", "scores": {"kind": s}} for s in scores]
    return json.dumps({"prompt": prompt, "responses": responses})


def test_a_prompt_is_one_pair_of_its_best_and_worst(tmp_path):
    path = tmp_path / "scored.jsonl"
    path.write_text("\n".join([line("a", 0.0, 3.0, 1.0), line("b", 1.0, 1.1)]))
    (pair,) = dpo_policy.preference_pairs(path, "kind", 0.3)
    assert pair["prompt"] == [{"role": "user", "content": "a"}]
    assert pair["chosen"][0]["content"] == "says 3.0"
    assert pair["rejected"][0]["content"] == "says 0.0"
    assert not list(dpo_policy.preference_pairs(path, "other", 0.3))
