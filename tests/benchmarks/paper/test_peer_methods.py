"""Peer methods: a second context with the same prompt changes nothing, a filter takes the highest reward."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch
from reference_guidance import guide_row

from benchmarks.paper.peer_logits_processors import (
    CombinedValuesProcessor,
    TwoContextsProcessor,
    ValueFilterProcessor,
    even_weights,
)
from benchmarks.paper.peer_methods import best_answers
from benchmarks.paper.transformers_decoding import TOP_K, TransformersDecoding
from pad_vllm.steering.comparison_conditions import unguided_condition
from pad_vllm.steering.guided_answers import DrawnAnswer, condition_messages
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation

PROMPTS = [Conversation.model_validate(text) for text in ("one", "a longer one")]
PLAIN = unguided_condition()


@pytest.fixture(scope="module")
def value():
    return tiny.persrm("llama", 4, ("a", "b"), 0.5)  # as many layers: heads only


@pytest.fixture(scope="module")
def decoding(value):
    return TransformersDecoding(value.backbone, tiny.tokenizer(), 0.0, 6)


def first_prompt_ids(decoding):
    return chat_token_ids(decoding.tokenizer, condition_messages(PROMPTS[0], PLAIN))


def first_answer(decoding, processor):
    (answer,) = decoding.draw(PROMPTS[:1], PLAIN, processor=lambda _: processor)
    return answer.token_ids


def test_two_contexts_with_the_same_prompt_answer_as_the_base(decoding):
    def two_contexts(prompts):
        return TwoContextsProcessor(decoding.model, *decoding.padded_ids(prompts, PLAIN), 2.0)

    same = decoding.draw(PROMPTS, PLAIN, processor=two_contexts)
    assert [a.token_ids for a in same] == [a.token_ids for a in decoding.draw(PROMPTS, PLAIN)]


@pytest.mark.parametrize("threshold", [float("-inf"), float("inf")])
def test_a_filter_keeps_the_bases_token_or_takes_the_highest_reward(decoding, value, threshold):
    w = even_weights(value, "b")
    settings = {"threshold": threshold, "temperature": 0.0, "top_k": 5}
    with ValueFilterProcessor(decoding.model, value, w, **settings) as value_filter:
        answer = first_answer(decoding, value_filter)
    assert not decoding.model.lm_head._forward_pre_hooks
    ids = first_prompt_ids(decoding)
    for token in answer:
        h, _ = value.hidden(torch.tensor([ids]))
        best = value.base_logits(h[0, -1]).topk(5).indices
        rewards = value.rewards(h[0, -1], h[0, -1], best, w)
        assert token == int(best[0] if threshold < 0 else best[rewards.argmax()])
        ids = [*ids, token]


def test_many_values_of_one_model_are_pads_rule(decoding, value):
    w = even_weights(value, "b")
    settings = SimpleNamespace(beta=3.0, top_k=5, min_p=0.2)

    def answer(values, combine):
        with CombinedValuesProcessor(
            decoding.model, values, w, combine, settings, [7]
        ) as processor:
            return first_answer(decoding, processor)

    alone = answer([value], lambda rewards: rewards[0])
    ids = first_prompt_ids(decoding)
    for token in alone:
        h, _ = value.hidden(torch.tensor([ids]))
        z = value.base_logits(h[0, -1])
        reward = value.rewards(h[0, -1], h[0, -1], torch.arange(len(z)), w)
        assert token == guide_row(z, reward, 3.0, 5, min_p=0.2, eos_token_ids=[7]).argmax()
        ids = [*ids, token]
    assert answer([value, value], lambda rewards: rewards.amax(0)) == alone


def test_a_value_that_is_the_same_for_all_candidates_is_zero_before_they_are_combined(
    decoding, value
):
    flat = SimpleNamespace(rewards=lambda h, _, ids, w: torch.full(ids.shape, 100.0))
    w, seen = even_weights(value, "b"), []
    settings = SimpleNamespace(beta=3.0, top_k=5, min_p=0.0)

    def combine(rewards):
        seen.append(rewards)
        return rewards.amax(0)

    with CombinedValuesProcessor(
        decoding.model, [flat, value], w, combine, settings, [7]
    ) as processor:
        first_answer(decoding, processor)
    assert all(r[0].abs().max() < 1e-4 < r[1].abs().max() for r in seen)


def test_the_best_of_some_answers_has_the_largest_sum_of_rewards(decoding, value):
    drawn = [
        [DrawnAnswer("x", (20, 31))],
        [DrawnAnswer("y", (45, 12, 9))],
        [DrawnAnswer("z", (7,))],
    ]
    w = even_weights(value, "a")

    def reward_sum(answer):
        ids = first_prompt_ids(decoding)
        total = 0.0
        for token in answer.token_ids:
            h, _ = value.hidden(torch.tensor([ids]))
            z, candidates = value.base_logits(h[0, -1]).topk(TOP_K)
            tokens = torch.tensor([token, *candidates])
            one, *others = value.rewards(h[0, -1], h[0, -1], tokens, w)
            total += float((one - z.softmax(-1) @ torch.stack(others)).detach())
            ids = [*ids, token]
        return total

    (best,) = best_answers(decoding, value, "a", PROMPTS[:1], drawn)
    assert best == max((row[0] for row in drawn), key=reward_sum)
