"""Metrics of answers: wins by judge with intervals, repetition, perplexity, relevance, per condition."""

from __future__ import annotations

import numpy as np
import pytest

from pad_vllm.evaluation.win_rates_and_fluency import AnswerLoss
from pad_vllm.steering import comparison_conditions, dimension_judges, steering_metrics
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.conversation import Conversation

PROMPTS = [Conversation.model_validate(f"question {i}") for i in range(4)]


class LengthJudges:
    """The longer answer is the kinder one, and the instructed base expects kind answers."""

    def __init__(self):
        self.instructions = {"kind": "Be kind."}

    def losses(self, prompts, answers, drawn_with, instruction=""):
        start = -9.0 if instruction else -5.0
        return [
            AnswerLoss(
                0.0 if instruction else float(len(answer.text)), 2, start * (answer.text[0] != "x")
            )
            for answer in answers
        ]

    def scores(self, dimension, texts, embeddings, reading):
        return {"length": [len(text) for text in texts]}


@pytest.fixture
def records(monkeypatch):
    monkeypatch.setattr(steering_metrics, "embed", lambda texts: np.ones((len(texts), 2)) / 2)
    instructions = {"kind": "Be kind."}
    rows = [
        comparison_conditions.unguided_condition(),
        *comparison_conditions.instructed_conditions(instructions),
        *comparison_conditions.guided_conditions("PAD", ("kind",), (2.0,)),
        *comparison_conditions.instructed_and_guided_conditions("PAD", instructions, [2.0]),
    ]
    lengths = [3, 5, 9, 1, 12]
    answers = [[DrawnAnswer("x" * n, (1, 2))] * len(PROMPTS) for n in lengths]
    answers[2] = [DrawnAnswer("x" * 9, (1, 2))] * 3 + [DrawnAnswer("?", (1, 2))]
    return steering_metrics.ConditionMetrics(LengthJudges(), PROMPTS).records(rows, answers)


def test_wins_are_those_over_the_unguided_answers(records):
    wins = {r["name"]: r["wins"].get("kind", {}).get("length", [None])[0] for r in records}
    assert wins == {
        "unguided": None,
        "told kind": 1.0,
        "PAD +kind": 0.75,
        "PAD -kind": 0.0,
        "told and PAD +kind": 1.0,
    }


def test_guidance_on_top_of_prompting_is_compared_with_prompting(records):
    assert records[-1]["wins_over_told"]["kind"]["length"] == [1.0, 0.5101, 1.0]
    assert all("wins_over_told" not in r for r in records[:-1])


def test_the_way_is_from_the_unguided_answers_to_the_told_ones(records):
    ways = {r["name"]: r["way"].get("kind", [None])[0] for r in records}
    # Half a text's length is its gap: (mean length - 3) / (5 - 3).
    assert ways == {
        "unguided": None,
        "told kind": 1.0,
        "PAD +kind": 2.0,
        "PAD -kind": -1.0,
        "told and PAD +kind": 4.5,
    }


def test_a_start_that_neither_base_would_make_is_derailed(records):
    derailed = {r["name"]: r.get("derailed") for r in records}
    assert derailed["PAD +kind"] == 0.25
    assert derailed["told kind"] == 0.0
    assert derailed["unguided"] is None


def test_the_table_has_a_line_for_each_condition(records):
    lines = steering_metrics.metrics_table(records)
    assert len(lines) == 2 + len(records)
    assert "| PAD +kind | 2 | length 75 | 2.00 (" in lines[4]
    assert ") | 25.0% | " in lines[4]
    assert "over told: length 100 (51 to 100)" in lines[-1]


def test_an_answers_own_loss_counts_for_the_instruction_that_it_was_drawn_with(monkeypatch):
    monkeypatch.setattr(
        dimension_judges,
        "answer_losses",
        lambda base, pairs: [AnswerLoss(7.0, len(i), -1.0) for _, i in pairs],
    )
    monkeypatch.setattr(dimension_judges, "chat_token_ids", lambda tokenizer, chat: [1])
    judges = dimension_judges.DimensionJudges(None, None, {"kind": "Be kind."})
    answers = [DrawnAnswer("x", (1, 2), 3.0, -2.0)] * len(PROMPTS)
    assert judges.losses(PROMPTS, answers, "") == [(3.0, 2, -2.0)] * len(PROMPTS)
    assert judges.losses(PROMPTS, answers, "", "Be kind.") == [(7.0, 2, -1.0)] * len(PROMPTS)
    unknown = [DrawnAnswer("x", (1, 2))] * len(PROMPTS)
    assert judges.losses(PROMPTS, unknown, "")[0] == (7.0, 2, -1.0)
