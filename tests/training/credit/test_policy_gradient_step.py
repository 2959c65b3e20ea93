"""The closed form against sums written out, and against what it is for: a planted reward."""

from __future__ import annotations

import pytest
import tiny
import torch

from pad_vllm.training.credit.policy_gradient_step import (
    PolicyGradientStep,
    StepStatistics,
    taken_reward_advantages,
)
from pad_vllm.training.objective.candidate_rewards import persrm_rewards
from pad_vllm.training.objective.fork_cache import CachedResponse

pytestmark = pytest.mark.usefixtures("one_thread")

K, T = 6, 0.8


@pytest.fixture(scope="module")
def model():
    made = tiny.persrm("llama", 4, ("a", "b"), constants=True, head_rank=64)
    assert made.heads_only
    return made


def response(model, count, seed):
    torch.manual_seed(seed)
    h_B = torch.randn(count, 64)
    z_B, ids = model.base_logits(h_B).topk(K)
    chosen = torch.multinomial((z_B / T).softmax(-1), 1).squeeze(-1)
    return CachedResponse(torch.zeros(0), h_B, ids, z_B, chosen)


def summed(model, rows, credit):
    sums = StepStatistics.zeros(2, 64)
    sums.add(model, rows, credit, T)
    return sums


def test_the_sums_are_those_of_every_token(model):
    rows = [response(model, n, n) for n in (3, 4)]
    credit = torch.randn(7, 2)
    sums = summed(model, rows, credit)
    gained, covariance, xx = torch.zeros(2, 64, 65), torch.zeros(64, 64), torch.zeros(65, 65)
    n = 0
    for row in rows:
        for t in range(len(row.chosen)):
            e = model.embeddings(row.ids[t])
            p = (row.z_B[t] / T).softmax(-1)
            turned = e[row.chosen[t]] - p @ e
            x = torch.cat([row.h_B[t], torch.ones(1)])
            for d in range(2):
                gained[d] += credit[n, d] * torch.outer(turned, x)
            covariance += e.T @ torch.diag(p) @ e - torch.outer(p @ e, p @ e)
            xx += torch.outer(x, x)
            n += 1
    assert sums.tokens == 7
    for found, expected in (
        (sums.policy_gradient, gained),
        (sums.covariance, covariance),
        (sums.xx, xx),
    ):
        assert torch.allclose(found, expected, atol=1e-3, rtol=1e-4)


def test_sums_stay_on_the_models_device(model, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: pytest.fail("copied to the host"))
    summed(model, [response(model, 3, 0)], torch.randn(3, 2))


def test_sums_of_parts_are_the_sum_of_the_whole(model):
    rows = [response(model, n, n) for n in (3, 4)]
    credit = torch.randn(7, 2)
    one, other = summed(model, rows[:1], credit[:3]), summed(model, rows[1:], credit[3:])
    whole = summed(model, rows, credit)
    for a, b, both in zip(*(vars(s).values() for s in (one, other, whole)), strict=True):
        assert torch.allclose(a + b, both, atol=1e-3)


def test_heads_and_constants_are_the_regularised_natural_step(model):
    sums = summed(model, [response(model, 400, 0)], torch.randn(400, 2))
    (solved,) = sums.solve(64, [0.3])
    xx, covariance, gained = (
        part.double() / 400 for part in (sums.xx, sums.covariance, sums.policy_gradient)
    )
    k = xx.diagonal()[:-1].sum().sqrt()
    scale = torch.cat([torch.ones(64), k[None]])
    inputs = torch.diag(scale) @ xx @ torch.diag(scale)
    inputs += 0.3 * xx.diagonal()[:-1].mean() * torch.eye(65)
    words = covariance + covariance.diagonal().mean() * torch.eye(64)
    M = words.inverse() @ (gained @ torch.diag(scale)) @ inputs.inverse()
    found = (solved.B @ solved.A).double()
    assert torch.allclose(found, M[..., :-1], atol=1e-4 * M.abs().max())
    assert torch.allclose(solved.C.double(), k * M[..., -1], atol=1e-4 * M.abs().max() * k)
    alone = torch.linalg.solve(words, gained[..., -1:]).squeeze(-1)
    assert torch.allclose(solved.constant_only.double(), alone, atol=1e-4 * alone.abs().max())


def test_a_lower_rank_keeps_the_larger_part(model):
    sums = summed(model, [response(model, 400, 0)], torch.randn(400, 2))
    (whole,), (cut,) = sums.solve(64, [1.0]), sums.solve(8, [1.0])
    assert cut.A.shape == (2, 8, 64)
    assert cut.B.shape == (2, 64, 8)
    assert torch.equal(cut.C, whole.C)
    rest = torch.linalg.matrix_norm(whole.B @ whole.A - cut.B @ cut.A)
    assert (rest < torch.linalg.matrix_norm(whole.B @ whole.A)).all()


def test_planted_rewards_are_found_one_by_the_state_one_by_the_constant(model):
    """Credit is the reward of the token that was taken, plus noise."""
    rows = [response(model, 500, seed) for seed in range(12)]
    torch.manual_seed(9)
    M, c = torch.randn(64, 64) / 8, torch.randn(64)
    e = torch.cat([model.embeddings(row.ids) for row in rows])
    h = torch.cat([row.h_B for row in rows])
    rewards = torch.stack([torch.einsum("nkh,nh->nk", e, h @ M.T), e @ c], -1)
    advantages = taken_reward_advantages(rewards, rows, T)
    credit = advantages + advantages.std(0) * torch.randn_like(advantages)
    (solved,) = summed(model, rows, credit).solve(64, [1.0])
    with torch.no_grad():
        for ours, theirs in zip(model.heads[:3], solved.heads[:3], strict=True):
            ours.copy_(theirs)
        fresh = [response(model, 500, 99)]
        found = taken_reward_advantages(persrm_rewards(model, fresh), fresh, T)
    e, h = model.embeddings(fresh[0].ids), fresh[0].h_B
    wanted = torch.stack([torch.einsum("nkh,nh->nk", e, h @ M.T), e @ c], -1)
    wanted = taken_reward_advantages(wanted, fresh, T)
    together = [torch.corrcoef(torch.stack([found[:, d], wanted[:, d]]))[0, 1] for d in (0, 1)]
    assert together[0] > 0.5
    assert together[1] > 0.8


def test_each_dimension_takes_the_step_that_was_chosen_for_it(model):
    sums = summed(model, [response(model, 400, 0)], torch.randn(400, 2))
    weak, strong = sums.solve(8, [1.0, 100.0])
    both = PolicyGradientStep.select([weak, strong], [1, 0])
    assert torch.equal(both.B[0], strong.B[0])
    assert torch.equal(both.C[1], weak.C[1])
    assert (
        torch.linalg.matrix_norm(strong.B @ strong.A).sum()
        < torch.linalg.matrix_norm(weak.B @ weak.A).sum()
    )
