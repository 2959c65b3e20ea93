"""The training objective, tensors in, tensors out: one Bradley-Terry loss over three kinds of pairs.

    R_w      = w . phi,  |w| = 1                                         rewards and margins of one scale
    Psi_w(y) = sum over response tokens of R_w(y_t)                      the reward of a response
    pi_w(a)  = softmax over the step's candidates of z_B(a) + R_w(a)     what guided decoding samples from
    L_w(y)   = sum over response tokens of log pi_w(y_t) / pi_B(y_t)     DPO's implicit reward
    loss     = BCE( sigmoid(b * (x(y) - x(y'))), sigmoid(margin) )       margin: w . (score(y) - score(y'))

x is Psi_w (reward), L_w (policy), or R_w of two next tokens after the same text (branches). Psi is the
reward of a response, which `pad-vllm fit` and held-out accuracy use. With Psi alone, all of the reward could
lie in an offset that the candidates of a step share, which steers nothing; L and the branches see only
differences between candidates. The candidates are those of decoding (the base's top-k), so no full-vocabulary
softmax is needed. Shapes: n tokens, K candidates, D dimensions, W preferences, R responses of one prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit_preferences(w: Tensor) -> Tensor:
    """w [..., D] at length 1: a margin and the rewards that follow it scale alike, whether w is a mix or not.

    Rewards of longer mixes would be pulled to a smaller scale than those of single dimensions.
    """
    return w / w.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def taken_rewards(phi: Tensor, w: Tensor, chosen: Tensor) -> Tensor:
    """R_w of the tokens that the response took.

    Args:
        phi: [n, K, D] features of the candidates.
        w: [n, W, D] preferences.
        chosen: [n] int64, index of the taken token among its candidates.

    Returns:
        [n, W].
    """
    rows = torch.arange(len(phi), device=phi.device)
    return torch.einsum("nd,nwd->nw", phi[rows, chosen], w)


def log_ratios(phi: Tensor, z_B: Tensor, w: Tensor, chosen: Tensor) -> Tensor:
    """log pi_w / pi_B of the tokens that the response took.

    Args:
        phi: [n, K, D] features of the candidates.
        z_B: [n, K] float32, the base's logits of the candidates.
        w: [n, W, D] preferences.
        chosen: [n] int64, index of the taken token among its candidates.

    Returns:
        [n, W], in nats.
    """
    reward = torch.einsum("nkd,nwd->nwk", phi, w)
    # log pi_w/pi_B (a) = R_w(a) - log E_B[exp R_w]: one logsumexp instead of two softmaxes.
    log_base = z_B.log_softmax(-1).unsqueeze(1)
    taken = chosen[:, None, None].expand(-1, reward.shape[1], 1)
    return reward.gather(-1, taken).squeeze(-1) - (log_base + reward).logsumexp(-1)


def pair_margins(scores: Tensor, w: Tensor) -> Tensor:
    """w . (score_i - score_j) / |w| of every two responses: scores [..., R, D], w [W, D] -> [..., W, R, R].

    0, which is no pair, where w weighs a dimension that one of the two has no score for (NaN).
    """
    unknown = scores.isnan()
    value = (scores.nan_to_num(0.0) @ unit_preferences(w).T).transpose(-1, -2)
    missing = (unknown.float() @ (w != 0).float().T > 0).transpose(-1, -2)
    margins = value.unsqueeze(-1) - value.unsqueeze(-2)
    return margins.masked_fill(missing.unsqueeze(-1) | missing.unsqueeze(-2), 0.0)


def bradley_terry(values: Tensor, margins: Tensor, b: float, sharpness: float) -> Tensor:
    """Mean loss over the pairs of values with a margin; 0 if no pair has one.

    The target probability that i is preferred to j is sigmoid(sharpness * margin): a wider margin makes a
    more certain label. Hard labels would weigh near ties like clear cases, and overfit small data sets.

    Args:
        values: [..., N], in any unit.
        margins: [..., N, N] in spreads; 0: no pair.
        b: inverse temperature of the values.
        sharpness: of the labels, per spread.

    Returns:
        A scalar.
    """
    difference = b * (values.unsqueeze(-1) - values.unsqueeze(-2))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        difference, (sharpness * margins).sigmoid(), reduction="none"
    )
    pairs = margins != 0
    return (loss * pairs).sum() / pairs.sum().clamp_min(1)


def branch_loss(phi: Tensor, w: Tensor, scores: Tensor, b: float, sharpness: float) -> Tensor:
    """`bradley_terry` over pairs that differ in their last token alone; the values are R_w.

    Args:
        phi: [m, K, D] features of the candidates at m tokens.
        w: [W, D] preferences.
        scores: [m, K, D] in spreads.
        b: inverse temperature of the values.
        sharpness: of the labels, per spread.

    Returns:
        A scalar.
    """
    reward = torch.einsum("mkd,wd->mwk", phi, unit_preferences(w))
    return bradley_terry(reward, pair_margins(scores, w), b, sharpness)


def pair_hits(values: Tensor, margins: Tensor, least_margin: float) -> tuple[Tensor, Tensor]:
    """Count the pairs whose values have the order of their scores; a tie counts half.

    Args:
        values: [W, R].
        margins: [W, R, R] of `pair_margins`.
        least_margin: only pairs with a wider margin count.

    Returns:
        (hits [W], pairs [W]).
    """
    pairs = margins > least_margin
    difference = values.unsqueeze(-1) - values.unsqueeze(-2)
    hits = (difference > 0).float() + 0.5 * (difference == 0).float()
    return (hits * pairs).sum((-1, -2)), pairs.sum((-1, -2))
