"""The loss against loops, and what a share is."""

from __future__ import annotations

import math

import pytest
import tiny
import torch

from pad_vllm.training.distillation.reward_regression import (
    RegressionExample,
    RewardRegression,
    explained_shares,
    squared_errors,
    token_weights,
)
from pad_vllm.training.objective.candidate_rewards import persrm_rewards, subtract_base_mean
from pad_vllm.training.objective.fork_cache import CachedResponse

pytestmark = pytest.mark.usefixtures("one_thread")

K, D = 5, 2


@pytest.fixture(scope="module")
def model():
    return tiny.persrm("llama", 2, ("a", "b"))


def response(model, count, seed, prompt=3):
    """A response of random tokens with random teacher rewards, as a store would give it."""
    torch.manual_seed(seed)
    ids = torch.randint(3, 300, (1, prompt + count))
    forked = model.states_below_fork(ids[:, :-1])
    h_B = model.base_states(forked)[0, -count:]
    z_B, candidates = model.base_logits(h_B).topk(K)
    wanted = subtract_base_mean(torch.randn(count, K, D), z_B)
    chosen = torch.zeros(count, dtype=torch.long)
    return CachedResponse(forked[0], h_B, candidates, z_B, chosen, teacher_rewards=wanted)


def test_an_error_is_the_bases_mean_of_the_squared_difference_whatever_all_candidates_share():
    torch.manual_seed(0)
    phi, z, wanted = torch.randn(3, K, D), torch.randn(3, K), torch.randn(3, K, D)
    found = squared_errors(phi + 7, z, subtract_base_mean(wanted, z))
    for n in range(3):
        p = z[n].softmax(-1)
        for d in range(D):
            difference = phi[n, :, d] - wanted[n, :, d]
            variance = (p * difference**2).sum() - (p * difference).sum() ** 2
            assert found[n, d].item() == pytest.approx(variance.item(), rel=1e-3)


def test_first_tokens_weigh_up_to_fourfold():
    assert token_weights(3).tolist() == pytest.approx(
        [4, 1 + 3 * math.exp(-0.5), 1 + 3 * math.exp(-1)]
    )
    assert token_weights(60)[-1] == pytest.approx(1, abs=1e-6)


def test_a_loss_is_the_weighted_mean_over_tokens_and_dimensions(model):
    answers, firsts = [response(model, 6, 0), response(model, 4, 1)], [response(model, 1, 2)]
    variance = torch.tensor([2.0, 0.5])
    loss = RewardRegression(model, variance, mean_weight=10.0)(
        [RegressionExample(answers, firsts)], 3
    )
    slow = 0.0
    for one in [*answers, *firsts]:
        error = squared_errors(persrm_rewards(model, [one]).detach(), one.z_B, one.teacher_rewards)
        for t, row in enumerate(error):
            slow += (1 + 3 * math.exp(-t / 2)) * float((row / variance).mean())
    assert loss.item() == pytest.approx(slow / 30, rel=1e-4)


def test_a_loss_does_not_depend_on_how_its_batch_is_split(model):
    batch = [
        RegressionExample([response(model, 5, n)], [response(model, 1, 9 + n)]) for n in range(3)
    ]
    objective = RewardRegression(model, torch.ones(D), 5.0)
    parts = objective(batch[:1], 3) + objective(batch[1:], 3)
    assert objective(batch, 3).item() == pytest.approx(parts.item(), rel=1e-5)
    assert objective([], 3).item() == 0


def test_a_share_is_one_for_the_teachers_own_rewards_and_nothing_for_none(model):
    prompts = [[response(model, 4, 0), response(model, 3, 1)], [response(model, 5, 2)]]
    same = explained_shares(lambda some: torch.cat([r.teacher_rewards for r in some]) + 1, prompts)
    none = explained_shares(lambda some: torch.zeros(sum(len(r.z_B) for r in some), K, D), prompts)
    assert same.tolist() == pytest.approx([1, 1])
    assert none.tolist() == [0, 0]


def test_a_share_of_first_tokens_looks_at_nothing_else(model):
    prompts = [[response(model, 4, 0), response(model, 3, 1)]]

    def first_right(some):
        wanted = [r.teacher_rewards.clone() for r in some]
        for one in wanted:
            one[1:] = 0
        return torch.cat(wanted)

    assert explained_shares(first_right, prompts, 1).tolist() == pytest.approx([1, 1])
    assert (explained_shares(first_right, prompts) < 0.9).all()
