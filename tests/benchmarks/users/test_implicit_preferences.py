"""Users who state no preference: their dialogues, the weights read from them, and the whole script."""

from __future__ import annotations

import pytest
import tiny
import torch
from scripted_engine import count_words

from benchmarks.users import implicit_preferences, user_dialogues, user_tastes
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.reward_space import RewardSpace
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.conversation import Conversation

CHAT = Conversation.model_validate


@pytest.fixture(scope="module")
def space():
    model = tiny.persrm("llama", 4, ("a", "b"), 0.5)
    new_space = RewardSpace(CandidateReader(model, tiny.tokenizer(), 8))
    new_space.read([CHAT("one")], [DrawnAnswer("x", (20, 31, 45, 12))], {})
    return new_space


def test_a_user_likes_a_dimension_or_two():
    found = implicit_preferences.make_users(("a", "b", "c"), 2)
    assert [u.name for u in found] == ["a", "b", "c", "a and b", "a and c"]
    assert found[3].taste == {"a": 1.0, "b": 1.0}


def test_a_dialogue_is_both_sides_of_it():
    found = user_dialogues.dialogue_messages([(CHAT("hi"), DrawnAnswer("ho", (1,)))])
    assert [m["role"] for m in found] == ["user", "assistant"]
    assert found[1]["content"] == "ho"


def test_the_slope_is_that_of_the_answers_likelihood(space):
    prompt = CHAT("one")
    ids = space.reader.candidates(prompt, DrawnAnswer("", (5, 6, 7))).ids
    answer = DrawnAnswer("", (*ids[0, 3:4].tolist(), 6, 7))
    slope = implicit_preferences.likelihood_slope(space, [(prompt, answer)])
    seen = space.reader.candidates(prompt, answer)
    with torch.no_grad():
        phi = space.model.features(seen.h, seen.h, seen.ids).double()
    w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    log = (seen.z.double() + phi @ w).log_softmax(-1)
    log[seen.ids == torch.tensor(answer.token_ids)[:, None]].sum().backward()
    torch.testing.assert_close(slope, w.grad)
    assert slope.abs().max() > 0


def test_rewards_agree_with_themselves_whatever_their_scale(space):
    assert implicit_preferences.cosine(space, {"a": 3.0}, {"a": 0.1}) == 1.0
    assert implicit_preferences.cosine(space, {"a": 1.0, "b": 0.5}, {"a": -1.0, "b": -0.5}) == -1.0


def test_the_script_compares_what_was_read_with_the_history_itself(scripted_engine, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(user_tastes, "embed", count_words)
    picture = scripted_engine.folder / "history.png"
    more = ["--turns", "2", "--read", "2", "--mixed", "1", "--picture", str(picture)]
    found = scripted_engine.run(monkeypatch, implicit_preferences.main, *more)
    assert [r["way"] for r in found["all"]] == list(implicit_preferences.WAYS)
    rows = {(r["user"], r["way"]): r for r in found["rows"]}
    assert len(rows) == 4 * 4
    assert rows["warm", "oracle"]["agrees"] == 1.0
    assert set(rows["warm", "read"]["weights"]) == {"warm", "dry", "calm"}
    assert rows["warm", "history"]["prompt"] > 0
    assert rows["warm", "read"]["prompt"] == 0
    assert rows["warm", "history"]["perplexity"] > 0
    assert picture.stat().st_size > 1000
    _, dialogues, _, behind = scripted_engine.batches
    assert dialogues.conditions[-1].instruction == "be warm be dry"
    last = behind.prompts[0].messages()
    assert [m["role"] for m in last] == ["user", "assistant"] * 2 + ["user"]
    assert behind.adapter is None
