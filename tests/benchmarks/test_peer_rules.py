"""Peers' rules: a second context that says the same changes nothing, a filter says what is paid."""

from __future__ import annotations

from types import SimpleNamespace

import peer_rules
import peers
import pytest
import tiny
import torch

from pad_vllm import guidance
from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.guided_answers import DrawnAnswer
from pad_vllm.training.data.conversation import Conversation

PROMPTS = [Conversation.model_validate(text) for text in ("one", "a longer one")]
PLAIN = comparison_conditions.unguided_condition()


@pytest.fixture(scope="module")
def value():
    return tiny.persrm("llama", 4, ("a", "b"), 0.5)  # as many layers: heads alone


@pytest.fixture(scope="module")
def loop(value):
    return peers.Loop(value.backbone, tiny.tokenizer(), 0.0, 6)


def test_two_contexts_that_say_the_same_say_what_the_base_says(loop):
    same = loop.answers(
        PROMPTS,
        PLAIN,
        rule=lambda some: peer_rules.TwoContexts(loop.model, *loop.padded(some, PLAIN), 2.0),
    )
    assert [a.token_ids for a in same] == [a.token_ids for a in loop.answers(PROMPTS, PLAIN)]


@pytest.mark.parametrize("least", [float("-inf"), float("inf")])
def test_a_filter_keeps_the_bases_token_or_takes_the_best_paid(loop, value, least):
    w = peers.weights(value, "b")
    with peer_rules.ValueFilter(loop.model, value, w, least, 0.0, 5) as kept:
        said = loop.answers(PROMPTS[:1], PLAIN, rule=lambda _: kept)[0].token_ids
    assert not loop.model.lm_head._forward_pre_hooks
    ids = peers.chat_token_ids(loop.tokenizer, peers.condition_messages(PROMPTS[0], PLAIN))
    for token in said:
        h, _ = value.hidden(torch.tensor([ids]))
        best = value.base_logits(h[0, -1]).topk(5).indices
        paid = value.rewards(h[0, -1], h[0, -1], best, w)
        assert token == int(best[0] if least < 0 else best[paid.argmax()])
        ids = [*ids, token]


def test_many_values_of_one_model_are_pads_rule(loop, value):
    w, settings = peers.weights(value, "b"), SimpleNamespace(beta=3.0, top_k=5, min_p=0.2)

    def said(values, paid):
        with peer_rules.ManyValues(loop.model, values, w, paid, settings, [7]) as rule:
            return loop.answers(PROMPTS[:1], PLAIN, rule=lambda _: rule)[0].token_ids

    found = said([value], lambda each: each[0])
    ids = peers.chat_token_ids(loop.tokenizer, peers.condition_messages(PROMPTS[0], PLAIN))
    for token in found:
        h, _ = value.hidden(torch.tensor([ids]))
        z = value.base_logits(h[0, -1])
        paid = value.rewards(h[0, -1], h[0, -1], torch.arange(len(z)), w)
        assert token == guidance.guide_row(z, paid, 3.0, 5, min_p=0.2, end_tokens=[7]).argmax()
        ids = [*ids, token]
    assert said([value, value], lambda each: each.amax(0)) == found


def test_a_value_that_pays_all_alike_is_beneath_none(loop, value):
    """What it pays everyone is taken off before the maximum."""
    flat = SimpleNamespace(rewards=lambda h, _, ids, w: torch.full(ids.shape, 100.0))
    w, settings, seen = peers.weights(value, "b"), SimpleNamespace(beta=3.0, top_k=5, min_p=0.0), []

    def paid(each):
        seen.append(each)
        return each.amax(0)

    with peer_rules.ManyValues(loop.model, [flat, value], w, paid, settings, [7]) as rule:
        loop.answers(PROMPTS[:1], PLAIN, rule=lambda _: rule)
    assert all(each[0].abs().max() < 1e-4 < each[1].abs().max() for each in seen)


def test_the_best_of_some_answers_is_what_the_reward_model_pays_most(loop, value):
    drawn = [
        [DrawnAnswer("x", (20, 31))],
        [DrawnAnswer("y", (45, 12, 9))],
        [DrawnAnswer("z", (7,))],
    ]
    w = peers.weights(value, "a")

    def paid(answer):
        ids = peers.chat_token_ids(loop.tokenizer, peers.condition_messages(PROMPTS[0], PLAIN))
        total = 0.0
        for token in answer.token_ids:
            h, _ = value.hidden(torch.tensor([ids]))
            z, known = value.base_logits(h[0, -1]).topk(peers.TOP_K)
            one, *others = value.rewards(h[0, -1], h[0, -1], torch.tensor([token, *known]), w)
            total += float((one - z.softmax(-1) @ torch.stack(others)).detach())
            ids = [*ids, token]
        return total

    (best,) = peers.best_of(loop, value, "a", PROMPTS[:1], drawn)
    assert best == max((row[0] for row in drawn), key=paid)
