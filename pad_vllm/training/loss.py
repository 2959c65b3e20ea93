"""The training objective, tensors in, tensors out: DPO on the policy that guided decoding samples from.

    pi_w(a) = softmax over the step's candidates of z_B(a) + R_w(a),  pi_B the same without R_w
    L_w(y)  = sum over response tokens of log pi_w(y_t) / pi_B(y_t)
    loss    = -log sigmoid( b * (L_w(chosen) - L_w(rejected)) )

The candidates are those of decoding (the base's top-k), so no full-vocabulary softmax is needed.
Shapes: n tokens, K candidates, D dimensions, W preferences, R responses of one prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_ratios(phi: Tensor, z_B: Tensor, w: Tensor, chosen: Tensor) -> Tensor:
    """log pi_w / pi_B of the tokens taken.

    phi [n, K, D], z_B [n, K], w [n, W, D], chosen [n] (the token's place among its candidates)
    -> [n, W].
    """
    reward = torch.einsum("nkd,nwd->nwk", phi, w)
    policy = (z_B.unsqueeze(1) + reward).log_softmax(-1)
    taken = chosen[:, None, None].expand(-1, policy.shape[1], 1)
    reference = z_B.log_softmax(-1).gather(-1, chosen.unsqueeze(-1))
    return policy.gather(-1, taken).squeeze(-1) - reference


def pair_margins(scores: Tensor, w: Tensor) -> Tensor:
    """w . (score_i - score_j): scores [R, D], w [W, D] -> [W, R, R], per unit of |w|."""
    value = scores @ w.T / w.norm(dim=-1).clamp_min(1e-6)
    return value.T.unsqueeze(-1) - value.T.unsqueeze(-2)


def pair_loss(ratios: Tensor, margins: Tensor, b: float, sharpness: float) -> tuple[Tensor, Tensor]:
    """DPO over all pairs of one prompt, each label as sure as its margin is wide.

    The probability that i is preferred to j is sigmoid(sharpness * margin): Bradley-Terry with the
    scorers' own margins. A hard label makes a near tie as loud as a clear case, and a small data
    set is then learned by heart. ratios L_w [R, W], margins [W, R, R] -> (summed loss, pairs).
    """
    return _bradley_terry(ratios.T, margins, b, sharpness)


def branch_loss(
    phi: Tensor, w: Tensor, scores: Tensor, b: float, sharpness: float
) -> tuple[Tensor, Tensor]:
    """The same loss for pairs that share all but their last token: L_w's difference is R_w's.

    phi [m, K, D] of the candidates at m tokens, w [m, W, D], scores [m, K, D]
    -> (summed loss, pairs).
    """
    reward = torch.einsum("mkd,mwd->mwk", phi, w)
    value = torch.einsum("mkd,mwd->mwk", scores, w) / w.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return _bradley_terry(reward, value.unsqueeze(-1) - value.unsqueeze(-2), b, sharpness)


def _bradley_terry(
    ratios: Tensor, margins: Tensor, b: float, sharpness: float
) -> tuple[Tensor, Tensor]:
    """ratios [..., N], margins [..., N, N] -> (summed loss, pairs with a margin)."""
    difference = b * (ratios.unsqueeze(-1) - ratios.unsqueeze(-2))
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        difference, (sharpness * margins).sigmoid(), reduction="none"
    )
    pairs = margins != 0
    return (loss * pairs).sum(), pairs.sum()


def pair_hits(ratios: Tensor, margins: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Per preference the pairs ranked rightly and all pairs: ([W], [W])."""
    pairs = margins > least
    hits = (ratios.T.unsqueeze(-1) > ratios.T.unsqueeze(-2)) & pairs
    return hits.sum((-1, -2)), pairs.sum((-1, -2))
