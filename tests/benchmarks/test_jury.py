"""Who judges without having taught, what a verdict says, and answers that are drawn once."""

from __future__ import annotations

import dataclasses

import jury
import kept
import pytest
import tiny

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.steering.comparison_conditions import Condition, unguided_condition
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import AnswerBatch, DecodingSettings, DrawnAnswer
from pad_vllm.training.data.conversation import Conversation


def test_a_scorer_does_not_judge_what_its_own_scores_taught(asked):
    config = load_adapter(asked.adapter).config
    assert jury.learned_from_scores(config) == frozenset()
    parts = {"parts": [{"dimensions": {"warm": 1.0}}, {"dimensions": {"calm": 1.0}, "taught": []}]}
    merged = dataclasses.replace(config, training=parts)
    assert jury.learned_from_scores(merged) == {"warm"}
    one = jury.Jury(DimensionJudges(None, None, {}), frozenset({"positive"}))
    assert one.names("positive") == ["polarity", "afinn"]
    assert one.names("brief") == ["brief"]
    assert one.names("warm") == []


def test_a_verdict_is_won_prompt_by_prompt_and_says_what_the_text_costs(asked):
    one = jury.Jury(DimensionJudges(None, None, {}), frozenset())
    plain = [DrawnAnswer("a b c", (1, 2), 2.0), DrawnAnswer("a b", (1, 2), 2.0)]
    guided = [DrawnAnswer("a", (1, 2), 4.0), DrawnAnswer("a b c", (1, 2), 4.0)]
    first, found = one.verdicts(["brief"], [plain, guided])
    assert first.wins == {"brief": [0.5, 0.5]}
    assert found.wins == {"brief": [1.0, 0.0]}
    assert found.perplexity == pytest.approx(2.718, abs=1e-3)
    assert jury.wished(found.wins["brief"], -1) == [0.0, 1.0]
    assert jury.shown([0.5, 0.25, 0.75]) == "50 (25 to 75)"


def test_answers_are_kept_by_what_decides_them_and_a_torn_line_is_drawn_again(asked, tmp_path):
    file = kept.Kept(tmp_path / "some" / "answers.jsonl")
    base = str(asked.base)
    batch = AnswerBatch(
        base,
        str(asked.adapter),
        [Conversation.model_validate("Hi")],
        [unguided_condition()],
        [DecodingSettings()],
    )
    said = file.answers(batch)
    copy = tiny.checkpoint("llama", tmp_path / "copy")
    assert file.answers(dataclasses.replace(batch, base=str(copy))) == said
    assert len(asked.batches) == 1
    more = Condition("+warm", {"warm": 1.0}, 1.0, request_arguments={"pad_min_p": 0.3})
    assert more.extra_args()["pad_min_p"] == 0.3
    file.answers(dataclasses.replace(batch, conditions=[more]))
    assert len(asked.batches) == 2
    file.path.write_text(file.path.read_text()[:-5])
    file.answers(dataclasses.replace(batch, conditions=[more]))
    file.answers(dataclasses.replace(batch, conditions=[more]))
    assert len(asked.batches) == 3
    assert file.answers(batch) == said
