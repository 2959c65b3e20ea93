"""The objective, number by number."""

from __future__ import annotations

import pytest
import torch

from pad_vllm.training.objective import preference_loss


def test_log_ratios_are_zero_without_reward_and_normalised_with_it():
    phi, z = torch.randn(5, 7, 2), torch.randn(5, 7)
    w = torch.randn(5, 3, 2)
    chosen = torch.randint(7, (5,))
    assert preference_loss.log_ratios(phi, z, 0 * w, chosen).abs().max() < 1e-6
    everything = torch.stack(
        [preference_loss.log_ratios(phi, z, w, torch.full((5,), i)) for i in range(7)], dim=-1
    )
    policy = (everything + z.log_softmax(-1).unsqueeze(1)).exp().sum(-1)
    assert torch.allclose(policy, torch.ones(5, 3), atol=1e-5)


def test_log_ratios_are_the_difference_of_two_softmaxes():
    phi, z, w = torch.randn(4, 6, 3), torch.randn(4, 6), torch.randn(4, 2, 3)
    chosen = torch.tensor([0, 5, 2, 2])
    reward = torch.einsum("nkd,nwd->nwk", phi, w)
    slow = (z[:, None] + reward).log_softmax(-1) - z[:, None].log_softmax(-1)
    taken = slow.gather(-1, chosen[:, None, None].expand(-1, 2, 1)).squeeze(-1)
    assert torch.allclose(preference_loss.log_ratios(phi, z, w, chosen), taken, atol=1e-5)


def test_taken_rewards_are_w_times_the_features_of_the_taken_token():
    phi, w, chosen = torch.randn(3, 5, 2), torch.randn(3, 4, 2), torch.tensor([1, 0, 4])
    found = preference_loss.taken_rewards(phi, w, chosen)
    assert found[2, 3].item() == pytest.approx((phi[2, 4] @ w[2, 3]).item(), abs=1e-5)


def test_a_loss_is_least_where_values_follow_the_margins():
    scores, w = torch.tensor([[1.0], [0.0], [-1.0]]), torch.ones(1, 1)
    margins = preference_loss.pair_margins(scores, w)
    follows = preference_loss.bradley_terry(scores.T * 10, margins, 0.1, 1.0)
    nothing = preference_loss.bradley_terry(scores.T * 0, margins, 0.1, 1.0)
    against = preference_loss.bradley_terry(-scores.T * 10, margins, 0.1, 1.0)
    assert follows < nothing < against


def test_a_margin_does_not_depend_on_the_scale_of_w():
    scores = torch.randn(4, 2)
    one = preference_loss.pair_margins(scores, torch.tensor([[1.0, 0.5]]))
    assert torch.allclose(
        one, preference_loss.pair_margins(scores, torch.tensor([[10.0, 5.0]])), atol=1e-6
    )


def test_a_pair_without_a_score_that_w_asks_for_is_no_pair():
    scores = torch.tensor([[1.0, torch.nan], [0.0, 2.0], [3.0, 5.0]])
    margins = preference_loss.pair_margins(scores, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert margins[0, 0, 1] == 1.0
    assert margins[1, 0].abs().max() == 0
    assert margins[1, 1, 2] == -3.0
    assert not margins.isnan().any()


def test_no_pair_at_all_costs_nothing_and_has_a_gradient():
    values = torch.randn(1, 3, requires_grad=True)
    found = preference_loss.bradley_terry(values, torch.zeros(1, 3, 3), 0.1, 1.0)
    found.backward()
    assert found == 0
    assert values.grad is not None


def test_branch_loss_is_the_pair_loss_of_two_responses_of_one_token():
    phi, w, scores = torch.randn(1, 2, 1), torch.ones(1, 1), torch.tensor([[[1.0], [0.0]]])
    branch = preference_loss.branch_loss(phi, w, scores, 0.5, 1.0)
    whole = preference_loss.bradley_terry(
        phi[0].T, preference_loss.pair_margins(scores[0], w), 0.5, 1.0
    )
    assert branch.item() == pytest.approx(whole.item())


def test_a_tie_counts_half_and_near_pairs_do_not_count():
    margins = preference_loss.pair_margins(torch.tensor([[1.0], [0.9], [0.0]]), torch.ones(1, 1))
    hits, pairs = preference_loss.pair_hits(torch.tensor([[2.0, 2.0, 1.0]]), margins, 0.0)
    assert (hits.item(), pairs.item()) == (2.5, 3)
    hits, pairs = preference_loss.pair_hits(torch.tensor([[2.0, 2.0, 1.0]]), margins, 0.5)
    assert (hits.item(), pairs.item()) == (2, 2)
