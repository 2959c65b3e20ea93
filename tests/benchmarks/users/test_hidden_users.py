"""Hidden users: their tastes, weights of usable dimensions for a left out one, and their scale."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from benchmarks.users import hidden_users
from benchmarks.users.simulated_choices import GuidedChoices
from benchmarks.users.user_tastes import SimulatedUser, TasteScores
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.reward_space import RewardSpace
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction

DIMENSIONS = ("a", "b", "c")


@pytest.fixture(scope="module")
def space():
    model = tiny.persrm("llama", 4, DIMENSIONS, 0.5)
    tokenizer = tiny.tokenizer()
    new_space = RewardSpace(CandidateReader(model, tokenizer, 8))
    answers = [DrawnAnswer("x", (20, 31, 45, 12)), DrawnAnswer("y", (9, 50, 33))]
    instructed = {
        "a": lambda c: with_instruction(c, "Be warm."),
        "b": lambda c: with_instruction(c, "Be brief."),
    }
    new_space.read(
        [Conversation.model_validate(text) for text in ("one", "two")], answers, instructed
    )
    return new_space


def test_a_users_dimension_is_left_out_or_the_taste_is_a_mix():
    found = list(hidden_users.make_users(DIMENSIONS, 4, seed=0))
    assert [u.name for u in found[:3]] == [f"left out: {name}" for name in DIMENSIONS]
    assert found[0].usable_dimensions == ("b", "c")
    for user in found[3:]:
        assert len(user.taste) in {2, 3}
        assert set(user.taste.values()) <= {1.0, -1.0}
        assert user.usable_dimensions == DIMENSIONS


def test_weights_are_scaled_to_one_logit(space):
    scaled = space.scale_to_one_logit({"a": 2.0, "c": -1.0})
    assert scaled["a"] == pytest.approx(-2 * scaled["c"])
    w = torch.tensor([scaled["a"], 0.0, scaled["c"]]).double()
    assert float(w @ space.gram @ w / space.tokens) == pytest.approx(1.0)


def test_a_dimensions_own_rewards_are_fully_explained_by_it(space):
    row = space.gram[1]
    space.prompt_products["twin"] = row.clone(), float(row[1])
    weights, share = space.project("twin", DIMENSIONS)
    assert share == pytest.approx(1.0, abs=0.01)
    assert max(weights, key=lambda name: abs(weights[name])) == "b"
    assert space.nearest("twin", DIMENSIONS) == ("b", pytest.approx(1.0))
    assert space.project("twin", ("a", "c"))[1] < 1


def test_an_instructions_rewards_have_zero_mean_and_are_not_zero(space):
    chat, answer = Conversation.model_validate("one"), DrawnAnswer("x", (20, 31, 45, 12))
    seen = space.reader.candidates(chat, answer)
    rewards = space.reader.instruction_rewards(chat, answer, "Be warm.", seen)
    assert rewards.shape == (4, 8)
    torch.testing.assert_close((seen.p * rewards).sum(-1), torch.zeros(4).double())
    assert rewards.abs().max() > 0


def test_a_taste_is_a_sum_of_standardised_judges():
    judge = {"a": lambda e: e[:, 0].tolist(), "b": lambda e: (10 * e[:, 1]).tolist()}
    embedded = np.array([[0.0, 1.0], [2.0, 3.0]])
    tastes = TasteScores.standardised(judge, embedded)
    user = SimulatedUser("mixed", {"a": 1.0, "b": -1.0}, ("a", "b"))
    assert tastes(user, embedded) == pytest.approx([0.0, 0.0])


def test_choices_between_guided_answers_show_the_taste(space):
    """The user likes answers that dimension a guides; b and c make no difference to the taste."""
    weights = torch.tensor(
        [[sign if d == row else 0.0 for d in range(3)] for row in range(3) for sign in (1.0, -1.0)]
    )
    source = np.random.default_rng(3)
    embedded = [source.normal(size=(40, 2)) * 0.1 + [float(w[0]), 0.0] for w in weights]
    tastes = TasteScores.standardised({"a": lambda e: e[:, 0].tolist()}, np.concatenate(embedded))
    offers = GuidedChoices(weights, embedded, seed=0)
    chosen = offers.chosen_less_other(SimulatedUser("x", {"a": 1.0}, DIMENSIONS), tastes, [0, 1, 2])
    assert chosen.shape == (40, 3)
    assert (chosen[:, 0] >= 0).all()
    assert chosen[:, 0].max() == 2.0
    others = offers.chosen_less_other(SimulatedUser("x", {"a": 1.0}, ("b", "c")), tastes, [1, 2])
    assert not others[:, 0].any()
    found = hidden_users.weights_by_way(
        SimulatedUser("x", {"a": 1.0, "b": 0.0}, DIMENSIONS), space, {"guided": chosen}, [40]
    )
    assert max(found["guided 40"], key=lambda d: abs(found["guided 40"][d])) == "a"


def test_users_of_a_kind_are_one_line_and_a_picture_has_their_distance(tmp_path):
    near = {"nearest": "b", "angle": 30.0, "unexplained": 0.2}
    rows = [
        {"user": f"left out: {name}", "way": way, "by_prompt": won, "wins": [0.5, 0.0, 1.0]}
        | {"perplexity": 1.1, **near}
        for name, way, won in (("a", "own", [1.0, 1.0]), ("b", "own", [1.0, 0.0]))
    ]
    (one,) = hidden_users.summarize(rows)
    assert one["user"] == "left out, all 2"
    assert one["wins"][0] == pytest.approx(0.75)
    assert hidden_users.table([one, *rows])[3].endswith("| 1.10x | b, 30 | 20% |")
    hidden_users.draw(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_more_choices_than_prompts_are_refused(tmp_path, monkeypatch):
    learn = tmp_path / "learn.jsonl"
    learn.write_text('{"prompt": "one"}\n')
    argv = ["hidden_users.py", "--learn", str(learn), "--judge-prompts", "j", "--prompts", "s"]
    monkeypatch.setattr("sys.argv", [*argv, "--out", "o", "--choices", "2"])
    with pytest.raises(SystemExit, match="--choices 2: .* has 1 prompts; accepted: at most"):
        hidden_users.main()
