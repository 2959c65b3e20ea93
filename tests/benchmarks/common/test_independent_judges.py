"""Which judges trained nothing, and what a verdict contains."""

from __future__ import annotations

import pytest

from benchmarks.common import independent_judges
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.guided_answers import DrawnAnswer


def test_a_scorer_does_not_judge_what_its_own_scores_taught():
    taught = {"positive": frozenset({"positive", "afinn"})}
    one = independent_judges.IndependentJudges(DimensionJudges(None, None, {}), taught)
    assert one.judge_names("positive") == ["polarity"]
    assert one.judge_names("brief") == ["brief"]
    assert one.judge_names("warm") == []


def test_a_verdict_has_wins_by_prompt_and_what_the_text_costs(scripted_engine):
    one = independent_judges.IndependentJudges(DimensionJudges(None, None, {}), {})
    plain = [DrawnAnswer("a b c", (1, 2), 2.0), DrawnAnswer("a b", (1, 2), 2.0)]
    guided = [DrawnAnswer("a", (1, 2), 4.0), DrawnAnswer("a b c", (1, 2), 4.0)]
    first, found = one.verdicts(["brief"], [plain, guided])
    assert first.wins == {"brief": [0.5, 0.5]}
    assert found.wins == {"brief": [1.0, 0.0]}
    assert found.perplexity == pytest.approx(2.718, abs=1e-3)
    assert independent_judges.wins_in_direction(found.wins["brief"], -1) == [0.0, 1.0]
    assert independent_judges.percent_with_interval([0.5, 0.25, 0.75]) == "50 (25 to 75)"
