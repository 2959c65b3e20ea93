"""The paper's dimensions: which prompts are answered in which ways, what counts as declining, the table."""

from __future__ import annotations

import json

import pytest

from benchmarks.paper import paper_dimensions
from benchmarks.paper.paper_dimensions import SENTENCES, TOGETHER, DimensionWins
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.conversation import Conversation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I'm sorry, but I can't assist with that.", True),
        ("As an AI language model, I have no opinion.", True),
        ("I can\u2019t help with this.", True),
        ("You can help by calling them.", False),
        ("Here is a list: " + "one " * 20 + "sorry", False),
    ],
)
def test_an_answer_declines_where_its_start_says_so(text, expected):
    assert paper_dimensions.declines(text) is expected


class EveryPrompt:
    def has_room(self, prompt):
        return "long" not in prompt[-1].content


def test_prompts_are_short_ones_of_held_out_pairs_as_many_of_each_file(tmp_path):
    rows = [
        json.dumps(
            {
                "chosen": f"\n\nHuman: {text} {i}\n\nAssistant: a",
                "rejected": f"\n\nHuman: {text} {i}\n\nAssistant: b",
            }
        )
        for i in range(80)
        for text in ("short", "long")
    ]
    files = {name: tmp_path / f"{name}.jsonl" for name in TOGETHER}
    for path in files.values():
        path.write_text("\n".join(rows))
    prompts = paper_dimensions.held_out_prompts(files, EveryPrompt(), 3)
    assert [name for name, _ in prompts] == ["harmless"] * 3 + ["helpful"] * 3
    assert all("short" in prompt[-1].content for _, prompt in prompts)


def test_every_dimension_and_both_together_are_asked_for_and_guided():
    humor = {"funny": "Be funny."}
    conditions = paper_dimensions.engine_conditions(humor, [0.5, 1.0], [0.8], 0.03)
    told = {c.name: c for c in conditions if c.instruction}
    assert told["told both"].instruction == " ".join(SENTENCES.values())
    guided = [(*c.weights, c.beta) for c in conditions if c.weights]
    assert guided[:3] == [("harmless", 0.5), ("helpful", 0.5), (*TOGETHER, 0.5)]
    assert guided[-1] == ("funny", 0.8)
    assert len(conditions) == 1 + 4 + 6 + 1


def test_wins_of_a_condition_are_the_mean_over_its_aims():
    def longer(_, texts):
        return [float(len(text)) for text in texts]

    def shorter(_, texts):
        return [-float(len(text)) for text in texts]

    prompts = [Conversation.model_validate(text) for text in "ab"]
    plain, answers = (
        [DrawnAnswer(text, ()) for text in row] for row in (["xx", "xx"], ["x", "xxx"])
    )
    wins = DimensionWins({"harmless": longer, "helpful": shorter}, {}, prompts, [plain, answers])(
        answers
    )
    assert wins == {"harmless": [0.25, 0.75], "helpful": [0.75, 0.25]}
    condition = Condition("heads both", {"harmless": 1.0}, 1.0, aims=dict.fromkeys(TOGETHER, 1))
    row = paper_dimensions.result_row(condition, wins, {"harmless": [1]})
    assert row["wins"][0] == 0.5
    assert row["own_prompts"]["harmless"][0] == 0.75
    costs = {"perplexity": 1.2, "repeated": 0.01, "words": 30, "declines": 0.5}
    line = paper_dimensions.table([row | costs], {name: name for name in TOGETHER})[-1]
    assert line.count("**") == 4
    assert "1.20x | 1.0% | 30 | 50% |" in line
