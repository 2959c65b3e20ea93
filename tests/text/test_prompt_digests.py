"""Digests of prompts find the prompts, however they are spelled, and no others."""

from __future__ import annotations

from pad_vllm.text.conversation import Conversation, prompt_key
from pad_vllm.text.prompt_digests import digest_prompts, find_digested


def prompts(*texts):
    return [Conversation.model_validate(text) for text in texts]


def test_prompts_are_found_by_their_digests_and_others_are_not():
    trained = prompts("What is a fork?", "Why so?", "Why so?")
    digests = digest_prompts(map(prompt_key, trained))
    asked = prompts("why  SO?", "What is a trunk?", "What is a fork?")
    assert [one.as_text() for one in find_digested(digests, asked)] == [
        "why  SO?",
        "What is a fork?",
    ]
    assert find_digested(digest_prompts([]), asked) == []


def test_digests_do_not_depend_on_the_order_and_take_seven_characters_a_prompt():
    keys = [f"prompt {i}" for i in range(1000)]
    assert digest_prompts(keys) == digest_prompts(reversed(keys))
    assert len(digest_prompts(keys)) < 7 * len(keys)
