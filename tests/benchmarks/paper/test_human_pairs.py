"""Human pairs: apart by prompt, judges that learn what people prefer and say how often they agree."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.paper import human_pairs
from benchmarks.paper.human_pairs import HumanPair, PairJudge, PairParts, fit_judge, read_parts
from pad_vllm.text.conversation import Conversation, prompt_key


@pytest.fixture
def word_counts(monkeypatch):
    """Embeddings that count two words, in the place of a model's."""

    def embed(texts):
        return np.array([[text.count("good"), text.count("bad")] for text in texts], dtype=float)

    monkeypatch.setattr(human_pairs, "embed", embed)


def pairs(start, count):
    return [
        HumanPair(Conversation.model_validate(f"question {i}"), f"good {i}", f"bad {i}")
        for i in range(start, start + count)
    ]


def hh_row(prompt):
    text = f"\n\nHuman: {prompt}\n\nAssistant: "
    return json.dumps({"chosen": f"{text}yes", "rejected": f"{text}no"})


def test_a_prompt_is_in_one_part_and_in_the_same_part_of_every_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(hh_row(f"question {i}") for i in range(60)))
    parts = read_parts("harmless", path)
    keys = [
        {prompt_key(one.prompt) for one in part}
        for part in (parts.training, parts.judge, parts.held_out)
    ]
    assert all(keys)
    assert sum(map(len, keys)) == len(set().union(*keys)) == 60
    assert {pair.chosen for pair in [*parts.judge, *parts.held_out]} == {"yes"}
    other = read_parts("helpful", path)
    assert [pair.prompt for pair in other.held_out] == [pair.prompt for pair in parts.held_out]


def test_a_judge_learns_the_preferred_word_and_is_measured_on_other_pairs(word_counts):
    held_out = [*pairs(50, 6), HumanPair(pairs(0, 1)[0].prompt, "bad", "good")]
    judge = fit_judge(PairParts([], pairs(0, 20), held_out))
    assert judge.agreement[0] == pytest.approx(6 / 7, abs=1e-3)
    assert judge.pairs == (20, 7)
    prompts = [pair.prompt for pair in pairs(0, 2)]
    good, bad = judge(prompts, ["good", "bad"])
    assert good > 0 > bad


def test_a_judge_is_read_back_from_the_result(word_counts, tmp_path):
    judge = fit_judge(PairParts([], pairs(0, 20), pairs(50, 6)))
    path = tmp_path / "judges.json"
    path.write_text(json.dumps({"judges": {"harmless": human_pairs.asdict(judge)}}))
    read = PairJudge.read_all(path)["harmless"]
    prompts = [pair.prompt for pair in pairs(0, 1)]
    assert read(prompts, ["good bad good"]) == judge(prompts, ["good bad good"])
    assert "good" not in "\n".join(human_pairs.judge_table({"harmless": read}))


def test_a_judge_reads_no_further_than_drawn_answers_go(word_counts):
    judge = fit_judge(PairParts([], pairs(0, 20), pairs(50, 6)))
    prompts = [pair.prompt for pair in pairs(0, 1)]
    padding = "word " * human_pairs.WORDS
    assert judge(prompts, [padding]) == judge(prompts, [f"{padding} good"])
