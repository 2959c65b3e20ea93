"""The explanation of an answer's tokens: the last decision on a position counts, and nothing is made up."""

from __future__ import annotations

import math

import pytest

from pad_vllm import guidance_outcome

A, B, C, HALF, REST = b"abc\xc3\xa9"


class LossyByteTokenizer:
    """Decodes bytes; unfinished characters are replaced."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


def explain(steps, ids, tokenizer=None):
    return guidance_outcome.token_explanations(steps, ids, tokenizer or LossyByteTokenizer())


def test_of_two_decisions_on_a_position_the_last_one_counts():
    steps = [(0, [A, B], [1.0, 2.0]), (0, [B, A], [3.0, 4.0])]
    (explained,) = explain(steps, [A])
    assert explained == {"token": "a", "reward": 4.0, "base": "b", "changed": True}


def test_a_token_that_was_no_candidate_or_had_no_reward_has_none():
    steps = [(0, [A], [1.0]), (1, [B], [math.nan])]
    first, second, third = explain(steps, [C, B, A])
    assert (first["reward"], first["base"], first["changed"]) == (None, "a", True)
    assert (second["reward"], second["changed"]) == (None, False)
    assert (third["reward"], third["base"], third["changed"]) == (None, None, False)


def test_a_character_of_several_tokens_is_the_last_ones():
    assert guidance_outcome.token_texts(LossyByteTokenizer(), [A, HALF, REST, B]) == [
        "a",
        "",
        "é",
        "b",
    ]


def test_without_a_tokenizer_there_are_rewards_and_no_text():
    assert guidance_outcome.token_texts(None, [A, B]) == ["", ""]
    (one,) = guidance_outcome.token_explanations([(0, [A], [1.0])], [A], None)
    assert one == {"token": "", "reward": 1.0, "base": "", "changed": False}


def test_answers_are_added_up_with_their_explanations():
    plain = {"guided_tokens": 4, "unguided_tokens": 1, "stopped": False}
    steps = [(0, [A], [1.0])]
    full = guidance_outcome.with_explanations({**plain, "steps": steps}, [A], LossyByteTokenizer())
    assert "steps" not in full
    assert guidance_outcome.with_explanations(plain, [A], LossyByteTokenizer()) == plain
    assert guidance_outcome.total_outcome([plain, full])["explained"] == [[], *full["explained"]]
    assert guidance_outcome.total_outcome([plain, plain]) == {
        "guided_tokens": 8,
        "unguided_tokens": 2,
        "stopped": False,
    }
    thought = {**plain, "reasoning_rows": 3}
    assert guidance_outcome.total_outcome([thought, plain, thought])["reasoning_rows"] == 6


@pytest.mark.parametrize(
    ("guided", "unguided", "reasoning", "tokens", "expected"),
    [
        (5, 0, 0, 5, (5, 0)),
        (3, 2, 0, 5, (3, 2)),
        (0, 0, 0, 5, (0, 5)),  # no processor of PAD saw a step
        (2, 1, 0, 5, (2, 3)),
        (2, 0, 3, 5, (2, 0)),  # reasoning that stays unguided
        (9, 4, 0, 5, (1, 4)),  # of drafts that were rejected too
        (0, 9, 0, 5, (0, 5)),
        (6, 0, 0, 5, (5, 0)),  # a step that ran ahead
        (0, 0, 0, 0, (0, 0)),
    ],
)
def test_rows_become_tokens(guided, unguided, reasoning, tokens, expected):
    rows = {"guided_tokens": guided, "unguided_tokens": unguided, "stopped": False}
    found = guidance_outcome.in_tokens({**rows, "reasoning_rows": reasoning}, tokens)
    assert (found["guided_tokens"], found["unguided_tokens"]) == expected
    assert "reasoning_rows" not in found


def test_lost_counts_stay_unknown():
    assert guidance_outcome.in_tokens(guidance_outcome.unknown_outcome(), 5) == (
        guidance_outcome.unknown_outcome()
    )


class WordTokenizer:
    """A tokenizer whose decoder takes the space off the first word, as SentencePiece's do."""

    def decode(self, ids):
        return "".join(f" w{one}" for one in ids)[1:]


def test_the_bases_most_likely_token_has_the_space_of_its_position():
    steps = [(0, [7], [1.0]), (1, [8], [1.0])]
    first, second = explain(steps, [7, 9], WordTokenizer())
    assert (first["token"], first["base"]) == ("w7", "w7")
    assert (second["token"], second["base"]) == (" w9", " w8")


def test_a_long_answer_is_decoded_a_few_tokens_at_a_time():
    class Counting(LossyByteTokenizer):
        most = 0

        def decode(self, ids):
            self.most = max(self.most, len(ids))
            return super().decode(ids)

    tokenizer = Counting()
    assert "".join(guidance_outcome.token_texts(tokenizer, [A, HALF, REST] * 50)) == "aé" * 50
    assert tokenizer.most <= 4
