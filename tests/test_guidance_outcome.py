"""What is told of an answer token by token: the last word on a place counts, and nothing is made up."""

from __future__ import annotations

import math

from pad_vllm import guidance_outcome

A, B, C, HALF, REST = b"abc\xc3\xa9"


class Bytes:
    """A tokenizer of bytes."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


def told(steps, ids, tokenizer=None):
    return guidance_outcome.token_explanations(steps, ids, tokenizer or Bytes())


def test_a_place_that_was_decided_twice_counts_as_the_last_time():
    steps = [(0, [A, B], [1.0, 2.0]), (0, [B, A], [3.0, 4.0])]
    (one,) = told(steps, [A])
    assert one == {"token": "a", "reward": 4.0, "base": "b", "changed": True}


def test_a_token_that_was_no_candidate_or_had_no_reward_has_none():
    steps = [(0, [A], [1.0]), (1, [B], [math.nan])]
    first, second, third = told(steps, [C, B, A])
    assert (first["reward"], first["base"], first["changed"]) == (None, "a", True)
    assert (second["reward"], second["changed"]) == (None, False)
    assert (third["reward"], third["base"], third["changed"]) == (None, None, False)


def test_a_character_of_several_tokens_is_the_last_ones():
    assert guidance_outcome.token_texts(Bytes(), [A, HALF, REST, B]) == ["a", "", "é", "b"]


def test_without_a_tokenizer_there_is_no_text_but_what_was_earned():
    assert guidance_outcome.token_texts(None, [A, B]) == ["", ""]
    (one,) = guidance_outcome.token_explanations([(0, [A], [1.0])], [A], None)
    assert one == {"token": "", "reward": 1.0, "base": "", "changed": False}


def test_answers_are_added_up_with_their_explanations():
    plain = {"unguided_tokens": 1, "stopped": False}
    steps = [(0, [A], [1.0])]
    full = guidance_outcome.with_explanations({**plain, "steps": steps}, [A], Bytes())
    assert "steps" not in full
    assert guidance_outcome.with_explanations(plain, [A], Bytes()) == plain
    assert guidance_outcome.total_outcome([plain, full])["explained"] == [[], *full["explained"]]
    assert guidance_outcome.total_outcome([plain, plain]) == {
        "unguided_tokens": 2,
        "stopped": False,
    }


class Worded:
    """A tokenizer whose decoder takes the space off the first word, as SentencePiece's do."""

    def decode(self, ids):
        return "".join(f" w{one}" for one in ids)[1:]


def test_what_the_base_held_likeliest_has_the_space_that_its_place_gives_it():
    steps = [(0, [7], [1.0]), (1, [8], [1.0])]
    first, second = told(steps, [7, 9], Worded())
    assert (first["token"], first["base"]) == ("w7", "w7")
    assert (second["token"], second["base"]) == (" w9", " w8")


def test_a_long_answer_is_decoded_a_few_tokens_at_a_time():
    class Counting(Bytes):
        most = 0

        def decode(self, ids):
            self.most = max(self.most, len(ids))
            return super().decode(ids)

    tokenizer = Counting()
    assert "".join(guidance_outcome.token_texts(tokenizer, [A, HALF, REST] * 50)) == "aé" * 50
    assert tokenizer.most <= 4
