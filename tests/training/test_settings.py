"""Settings written before `method` was one literal: read as they were, with the digest that they had."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pad_vllm.training.run_folder import claim_run_folder
from pad_vllm.training.settings import DistillationSettings, Recipe, Settings

# What `as_dict` and `digest` of the version with `teacher` and `by_credit` returned.
COMMON = {
    "base": "smollm2-135m",
    "data": ["jsonl=scored.jsonl"],
    "out": "out",
    "name": None,
    "dimensions": [],
    "fork_layer": None,
    "lora_rank": 16,
    "head_rank": 16,
    "dtype": "float32",
    "max_prompt": 256,
    "max_response": 128,
    "validation": 0.1,
    "held_out": 0.1,
    "limit": None,
    "strict": False,
    "prompted": True,
    "text_preferences": 0,
    "cached": True,
    "beta": 1.0,
    "top_k": 20,
    "no_repeat": 0,
    "min_p": 0.0,
    "chat_template": None,
    "teacher": None,
    "by_credit": False,
}
RECIPE = {
    "epochs": 1,
    "head_epochs": 6,
    "groups": 8,
    "micro_groups": 4,
    "preferences": 8,
    "lora_lr": 0.0002,
    "head_lr": 0.001,
    "weight_decay": 0.01,
    "warmup": 0.1,
    "clip": 1.0,
    "b": 0.1,
    "branch_b": 1.0,
    "sharpness": 1.0,
    "reward_weight": 1.0,
    "policy_weight": 1.0,
    "branch_weight": 1.0,
    "branch_share": 0.05,
    "candidates": 20,
    "trace": 0.8,
    "temperature": 0.8,
    "least_margin": 0.3,
    "evaluate_every": 100,
    "patience": 4,
    "validation_prompts": 96,
    "checkpointing": False,
    "seed": 0,
}
GUARDED = {"head_rank": 128, "beta": 0.8, "no_repeat": 3, "min_p": 0.15}
SENTENCES = {"kind": "Be kind.", "brief": "Be brief."}
TEACHER = {
    "sentences": SENTENCES,
    "prompts": "p.txt",
    "opposites": {"brief": "Talk at length."},
    "answers": 50,
    "firsts": 2,
}


def written(recipe=(), **changes):
    return {**COMMON, **changes, "recipe": {**RECIPE, **dict(recipe)}}


PAIRS = written({"b": 0.3}, dimensions=["kind", "brief"])
SCORES = written(**GUARDED, by_credit=True)
PROMPT = written(
    {"epochs": 4, "head_epochs": 0, "evaluate_every": 20, "head_lr": 1e-4},
    **{**GUARDED, "data": [], "max_response": 80, "teacher": TEACHER},
)


@pytest.mark.parametrize(
    ("values", "method", "digest"),
    [
        (PAIRS, "pairs", "5a30c2d12d8d45ef"),
        (SCORES, "scores", "01b280f5778ddd4d"),
        (PROMPT, "prompt", "33abb59490c1bfeb"),
    ],
)
def test_older_settings_are_read_with_their_method_and_their_digest(values, method, digest):
    settings = Settings.from_dict(json.loads(json.dumps(values)))
    assert settings.method == method
    assert settings.digest() == digest
    assert json.loads(json.dumps(settings.as_dict())) == values


def test_older_settings_are_those_that_a_user_chooses_now():
    recipe = Recipe(epochs=4, head_epochs=0, evaluate_every=20, head_lr=1e-4)
    teacher = DistillationSettings(
        SENTENCES,
        prompts="p.txt",
        opposites={"brief": "Talk at length."},
        answers=50,
        gate=False,  # the heads of before there were gates
    )
    chosen = Settings(
        "smollm2-135m",
        (),
        "out",
        method="prompt",
        teacher=teacher,
        recipe=recipe,
        max_response=80,
        **GUARDED,
    )
    assert Settings.from_dict(PROMPT) == chosen


def test_gates_are_a_choice_that_makes_another_run():
    teacher = DistillationSettings(SENTENCES)
    gated = Settings("base", (), "out", method="prompt", teacher=teacher)
    assert teacher.gate
    plain = dataclasses.replace(gated, teacher=dataclasses.replace(teacher, gate=False))
    assert gated.as_dict()["teacher"]["gate"] is True
    assert "gate" not in plain.as_dict()["teacher"]
    assert gated.digest() != plain.digest()
    for settings in (gated, plain):
        assert Settings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


def test_a_loops_price_is_written_where_there_is_one():
    before = Settings("base", (), "out")
    assert "loop_price" not in before.as_dict()
    priced = dataclasses.replace(before, loop_price=0.25)
    assert Settings.from_dict(json.loads(json.dumps(priced.as_dict()))) == priced
    assert priced.digest() != before.digest()


def test_settings_of_before_credit_and_instructions_were_ways_to_train_are_pairs():
    values = {k: v for k, v in PAIRS.items() if k not in ("teacher", "by_credit", "min_p")}
    assert Settings.from_dict(values) == Settings.from_dict(PAIRS)


def test_an_unfinished_run_of_before_goes_on_with_the_same_choices(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps(SCORES))
    settings = Settings.from_dict(SCORES)
    claim_run_folder(tmp_path, settings)
    with pytest.raises(ValueError, match="method was 'scores', now 'pairs'.*--restart"):
        claim_run_folder(tmp_path, dataclasses.replace(settings, method="pairs"))


def test_instructions_are_needed_by_their_method_and_by_no_other():
    with pytest.raises(ValueError, match="method prompt learns from instructions"):
        Settings("base", (), "out", method="prompt")
    with pytest.raises(ValueError, match="leave `teacher` out, or use method prompt"):
        Settings("base", (), "out", teacher=DistillationSettings(SENTENCES))
