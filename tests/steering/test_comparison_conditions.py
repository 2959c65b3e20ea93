"""Conditions of a comparison: unguided, instructed, guided in both signs, both together, and mixes."""

from __future__ import annotations

from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.guided_answers import condition_messages
from pad_vllm.text.conversation import Conversation

INSTRUCTIONS = {"kind": "Be kind."}
PROMPT = Conversation.model_validate("Hello")


def test_both_signs_of_every_dimension_are_guided_at_every_strength():
    rows = comparison_conditions.guided_conditions("PAD", ("kind", "brief"), (1.0, 2.0))
    assert [r.name for r in rows] == ["PAD +kind", "PAD -kind", "PAD +brief", "PAD -brief"] * 2
    assert rows[1].extra_args() == {"pad_weights": ["kind=-1"], "pad_beta": 1.0}
    assert rows[1].aims == {"kind": -1}


def test_an_instruction_stands_after_the_prompt_and_is_not_guided():
    (instructed,) = comparison_conditions.instructed_conditions(INSTRUCTIONS)
    assert instructed.extra_args() is None
    assert condition_messages(PROMPT, instructed)[0]["content"].endswith("Hello\n\nBe kind.")
    assert (
        condition_messages(PROMPT, comparison_conditions.unguided_condition())[0]["content"]
        == "Hello"
    )


def test_instructed_and_guided_is_both():
    (both,) = comparison_conditions.instructed_and_guided_conditions("PAD", INSTRUCTIONS, [2.0])
    assert both.extra_args() == {"pad_weights": ["kind=1"], "pad_beta": 2.0}
    assert both.instruction == "Be kind."


def test_every_two_dimensions_are_mixed_once():
    rows = comparison_conditions.mixed_conditions("PAD", ("a", "b", "c"), 1.0)
    assert [r.name for r in rows] == ["PAD +a+b", "PAD +a+c", "PAD +b+c"]
    assert rows[0].aims == {"a": 1, "b": 1}
