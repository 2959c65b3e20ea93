"""THE RULE: rewards and guided scores of tokens, tensors in, tensors out. Every engine and training call it.

    u_i      = 2 sigma(G_i h_T) * (A_i h_T)            elementwise; heads without gates: A_i h_T
    phi_i(a) = < e_a , (h_T - h_B) + B_i u_i + c_i >   one feature a preference dimension
    R_w(a)   = sum_i w_i phi_i(a) = < e_a , d_w >      w^T phi, PAD's decoupled reward (arXiv 2410.04070)
    d_w      = (sum_i w_i) (h_T - h_B) + sum_i w_i (B_i u_i + c_i)
    score(a) = z_B(a) + beta * R_w(a)   for a in top-k of the base, -inf elsewhere

On a GPU kernels/triton_kernels.py computes candidates, token_rewards, capped_candidates and guide: a change
here is made there too.
Guards, where a request asks for them: for a capped candidate beta * R_w(a) is at most the mean of it over
the row's candidates under the base. The no-repeat guard takes the candidates that would complete an n-gram
which is already in the answer. The min-p guard takes the candidates that are less likely than a share of the
row's best one (the plausibility constraint of contrastive decoding, arXiv 2210.15097), except tokens that
end the answer.
The constants c_i and the gates G_i are optional. A gate of zeros is a factor of exactly 1, so it is none.
With heads only, h_T = h_B: the reward comes from heads and constants.
Shapes: H hidden size, V vocabulary, D preference dimensions, r head rank, R logits rows, G guided rows among
them, K candidates. Rewards are in logit units. This module does not know requests, models, engines or vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pad_vllm.answer_tokens import AnswerTokens, repeats_ngram

NEG_INF = float("-inf")
_BLOCK = 64  # tokens of the vocabulary that share one maximum in `_top_k`
_MAX_COPY_NUMEL = 1 << 22  # elements that one temporary copy may have: 16 MiB of float32


class HeadTensors(NamedTuple):
    """The preference heads of D dimensions, in the order of the arguments of this module's functions."""

    A: Tensor
    """[D, r, H], down-projections."""

    B: Tensor
    """[D, H, r], up-projections."""

    C: Tensor | None = None
    """[D, H], constants c_i."""

    G: Tensor | None = None
    """[D, r, H], gates."""

    def on_device(self, device: torch.device) -> HeadTensors:
        """These heads on `device`, copied where they are on another one."""
        return self.mapped(lambda part: part.to(device))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> HeadTensors:
        """What `function` makes of every part that there is."""
        A, B, C, G = self
        return HeadTensors(
            function(A),
            function(B),
            None if C is None else function(C),
            None if G is None else function(G),
        )


class GuideResult(NamedTuple):
    """What `guide` did to each guided row."""

    unguided: Tensor
    """[G] bool: the row's logits were left as they came."""

    changed: Tensor
    """[G] bool: guidance changed the row's most likely token."""


def head_directions(
    h_T: Tensor,
    head_A: Tensor,
    head_B: Tensor,
    head_C: Tensor | None = None,
    head_G: Tensor | None = None,
) -> Tensor:
    """Compute `B_i u_i + c_i` for every dimension.

    Args:
        h_T: [..., H] hidden states of the reward model.
        head_A: [D, r, H] of the preference heads.
        head_B: [D, H, r] of the preference heads.
        head_C: [D, H] constants c_i, or None.
        head_G: [D, r, H] gates, or None.

    Returns:
        [..., D, H].
    """
    low_rank = torch.einsum("drh,...h->...dr", head_A, h_T)
    if head_G is not None:
        low_rank = low_rank * _gate(torch.einsum("drh,...h->...dr", head_G, h_T))
    directions = torch.einsum("dhr,...dr->...dh", head_B, low_rank)
    return directions if head_C is None else directions + head_C


def _gate(x: Tensor) -> Tensor:
    """2 sigma(x): exactly 1 where x is 0."""
    return 2 * x.sigmoid()


def features(
    h_B: Tensor,
    h_T: Tensor,
    e: Tensor,
    head_A: Tensor,
    head_B: Tensor,
    head_C: Tensor | None = None,
    head_G: Tensor | None = None,
) -> Tensor:
    """Compute phi, one feature a dimension, of each candidate.

    Args:
        h_B: [..., H] hidden states of the base.
        h_T: [..., H] hidden states of the reward model.
        e: [..., K, H] embeddings of the candidates.
        head_A: [D, r, H].
        head_B: [D, H, r].
        head_C: [D, H], or None.
        head_G: [D, r, H], or None.

    Returns:
        [..., K, D] in logit units.
    """
    of_heads = head_directions(h_T, head_A, head_B, head_C, head_G)
    directions = (h_T - h_B).unsqueeze(-2) + of_heads
    return torch.einsum("...kh,...dh->...kd", e, directions)


def reward_direction(
    h_B: Tensor,
    h_T: Tensor,
    w: Tensor,
    head_A: Tensor,
    head_B: Tensor,
    head_C: Tensor | None = None,
    head_G: Tensor | None = None,
) -> Tensor:
    """Compute d_w, the one vector that a row needs: its dot product with an embedding is R_w.

    Args:
        h_B: [..., H] hidden states of the base. With heads only pass the same object as `h_T`.
        h_T: [..., H] hidden states of the reward model.
        w: [..., D] weights of the dimensions.
        head_A: [D, r, H].
        head_B: [D, H, r]; from `contiguous_for_direction`, or each call copies it.
        head_C: [D, H], or None.
        head_G: [D, r, H], or None.

    Returns:
        [..., H].
    """
    low_rank = h_T @ head_A.flatten(0, 1).T
    if head_G is not None:
        low_rank = low_rank * _gate(h_T @ head_G.flatten(0, 1).T)
    low_rank = low_rank.unflatten(-1, head_A.shape[:2]) * w.unsqueeze(-1)
    d_w = low_rank.flatten(-2) @ head_B.transpose(1, 2).flatten(0, 1)
    if h_T is not h_B:
        d_w = d_w + w.sum(-1, keepdim=True) * (h_T - h_B)
    return d_w if head_C is None else d_w + w @ head_C


def contiguous_for_direction(head_B: Tensor) -> Tensor:
    """[D, H, r] with the same values, laid out so that `reward_direction` multiplies by it without a copy."""
    return head_B.mT.contiguous().mT


def rewards(d_w: Tensor, e: Tensor) -> Tensor:
    """R_w [..., K] in logit units, of directions d_w [..., H] and candidate embeddings e [..., K, H]."""
    return torch.einsum("...kh,...h->...k", e, d_w)


def token_rewards(d_w: Tensor, ids: Tensor, embedding: Tensor) -> Tensor:
    """Compute R_w of tokens by their ids.

    At most 16 MiB of embeddings are gathered at once, as float32, whatever G and K are.

    Args:
        d_w: [G, H] float32 directions.
        ids: [G, K] int64 token ids.
        embedding: [V, H] of any float dtype, on the same device.

    Returns:
        [G, K] float32 in logit units.
    """
    rows_at_once = max(1, _MAX_COPY_NUMEL // (ids.shape[-1] * embedding.shape[-1] or 1))
    return torch.cat(
        [
            rewards(directions, torch.nn.functional.embedding(tokens, embedding).float())
            for directions, tokens in zip(
                d_w.split(rows_at_once), ids.split(rows_at_once), strict=True
            )
        ]
    )


def candidates(logits: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best tokens of the guided rows, best first.

    The higher logit comes first, among equal logits the lower token id. This order is total: the candidates
    for a smaller k are a prefix of a row's candidates, so one call serves rows with different k. Rows are
    searched a few at a time: what is copied of their logits, and ranked, is at most some 20 MiB at once.

    Args:
        logits: [R, V] float32.
        rows: [G] int64 indices of the guided rows.
        k: the largest number of candidates that a row wants.

    Returns:
        Logits z_B [G, min(k, V)] and token ids [G, min(k, V)] int64.
    """
    k = min(k, logits.shape[-1])
    rows_at_once = max(1, _MAX_COPY_NUMEL // logits.shape[-1])
    if len(rows) == len(logits):
        parts = [_top_k(part, k) for part in logits.split(rows_at_once)]
    else:
        parts = [_top_k(logits.index_select(0, part), k) for part in rows.split(rows_at_once)]
    return torch.cat([z for z, _ in parts]), torch.cat([ids for _, ids in parts])


def _top_k(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same for all rows. The k best tokens lie in the k blocks with the highest maxima, or in the tokens
    after the last whole block. On a CPU these two rounds are three to five times faster than one topk over V.
    """
    V, num_blocks = logits.shape[-1], logits.shape[-1] // _BLOCK
    blocks = logits[:, : num_blocks * _BLOCK].unflatten(-1, (num_blocks, _BLOCK))
    numbers = torch.arange(max(num_blocks, _BLOCK), device=logits.device)
    best_blocks = sort_keys(blocks.amax(-1), numbers[:num_blocks])
    best_blocks = best_blocks.topk(min(k, num_blocks), sorted=False).indices
    ids = (best_blocks.unsqueeze(-1) * _BLOCK + numbers[:_BLOCK]).flatten(1)
    if remainder := V % _BLOCK:
        last_ids = num_blocks * _BLOCK + numbers[:remainder]
        ids = torch.cat((ids, last_ids.expand(len(ids), -1)), dim=-1)
    z = logits.gather(1, ids)
    best = sort_keys(z, ids).topk(k).indices
    return z.gather(1, best), ids.gather(1, best)


def sort_keys(z: Tensor, numbers: Tensor) -> Tensor:
    """[..., n] int64, all different: ranked by z [..., n], equal ones by the lower of numbers [..., n].

    The bits of a float32, the lower ones flipped for a negative, are ordered as its values are. A NaN of
    either sign ranks first, so that `guide` sees it among the candidates.
    """
    comparable = z.float().nan_to_num(nan=-NEG_INF, posinf=-NEG_INF, neginf=NEG_INF)
    bits = (comparable + 0.0).view(torch.int32)  # + 0.0: the two zeros are equal
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32) - numbers


def guide(
    logits: Tensor,
    rows: Tensor,
    z: Tensor,
    ids: Tensor,
    reward: Tensor,
    beta: Tensor,
    top_k: Tensor,
    capped: Tensor | None = None,
    prices: Tensor | None = None,
    excluded: Tensor | None = None,
) -> GuideResult:
    """Write the guided scores into `logits`, in place; rows that are not in `rows` are not touched.

    A candidate that arrives as -inf (a grammar mask, banned words) stays -inf. A row that
    is excluded, or where another candidate has a NaN or inf logit or score, stays as it came. Does not
    synchronise the device. All that may fail comes before the first write.

    Args:
        logits: [R, V] float32.
        rows: [G] int64 indices of the guided rows, ascending and unique.
        z: [G, K] logits of the candidates, from `candidates`.
        ids: [G, K] int64 token ids, from `candidates`.
        reward: [G, K] R_w of the candidates.
        beta: [G] strengths.
        top_k: [G] integers, how many of the K candidates each row wants.
        capped: [G, K] bool from `capped_candidates`, or None: their reward is limited to the row's mean.
        prices: [G, K] from `answer_tokens.loop_prices`, or None: what candidates of guided rows cost; the
            guided scores, and the mean, are those of a base whose logits are lower by them.
        excluded: [G] bool or None: rows that are not to be guided in this step.

    Returns:
        Which rows stayed as they came, and of which the most likely token changed.
    """
    priced = z if prices is None else z - prices
    legal = _legal_candidates(z, top_k)
    scaled_reward = beta.unsqueeze(-1) * reward.to(z.dtype)
    if capped is not None:
        at_most_mean = torch.minimum(scaled_reward, _mean_under_base(priced, scaled_reward, legal))
        scaled_reward = torch.where(capped, at_most_mean, scaled_reward)
    score = priced + scaled_reward
    is_guided = (score.isfinite() | ~legal).all(-1, keepdim=True)
    if excluded is not None:
        is_guided = is_guided & ~excluded.unsqueeze(-1)
    new = torch.where(is_guided, score.masked_fill(~legal, NEG_INF), z)
    unguided = ~is_guided.squeeze(-1)
    changed = (new.argmax(-1) != 0) & ~unguided  # the candidates come best first
    _write_rows(logits, rows, ids, new, cleared=is_guided)
    return GuideResult(unguided, changed)


def centred_rewards(z: Tensor, reward: Tensor, top_k: Tensor) -> Tensor:
    """Rewards less their mean over the row's candidates under the base, since what all share steers nothing.

    Args:
        z: [G, K] logits of the candidates, from `candidates`.
        reward: [G, K] their rewards.
        top_k: [G] integers, how many of the K candidates each row wants.

    Returns:
        [G, K] in logit units.
    """
    return reward - _mean_under_base(z, reward, _legal_candidates(z, top_k))


def _legal_candidates(z: Tensor, top_k: Tensor) -> Tensor:
    """[G, K] bool: not masked, and among the row's own top_k [G]."""
    position = torch.arange(z.shape[-1], device=z.device)
    return (z != NEG_INF) & (position < top_k.unsqueeze(-1))


def _mean_under_base(z: Tensor, values: Tensor, legal: Tensor) -> Tensor:
    """[G, 1] means of values [G, K] over the legal candidates, weighted by the base's probabilities.

    In float64, where the sum does not depend on how many candidates other rows want.
    """
    p = z.masked_fill(~legal, NEG_INF).double().softmax(-1)
    return (p * values.masked_fill(~legal, 0.0)).sum(-1, keepdim=True).to(values.dtype)


def capped_candidates(
    z: Tensor,
    ids: Tensor,
    min_p: Tensor | None,
    eos_token_ids: Tensor,
    answer: AnswerTokens | None,
    n: Tensor,
    max_n: int,
) -> Tensor | None:
    """Find the candidates that either guard takes: `below_min_p` or `repeats_ngram`.

    Args:
        z: [G, K] logits of the candidates, best first.
        ids: [G, K] int64 token ids.
        min_p: [G] as in `below_min_p`; None leaves that guard out.
        eos_token_ids: [E] int64 ids of the tokens that end an answer.
        answer: the answers so far; None leaves the no-repeat guard out.
        n: [G] integers as in `repeats_ngram`.
        max_n: at least the largest of `n`, on the host.

    Returns:
        [G, K] bool, None without either guard.
    """
    unlikely = None if min_p is None else below_min_p(z, ids, min_p, eos_token_ids)
    if answer is None:
        return unlikely
    repeated = repeats_ngram(answer, ids, n, max_n)
    return repeated if unlikely is None else unlikely | repeated


def below_min_p(z: Tensor, ids: Tensor, min_p: Tensor, eos_token_ids: Tensor) -> Tensor:
    """Find the candidates that are less than min_p times as likely as the row's best.

    Tokens that end the answer are never among them: no text follows that could go wrong, and the length of an
    answer is a preference too.

    Args:
        z: [G, K] logits of the candidates, best first.
        ids: [G, K] int64 token ids.
        min_p: [G] shares of the best candidate's probability; 0 for rows without this guard.
        eos_token_ids: [E] int64 ids of the tokens that end an answer.

    Returns:
        [G, K] bool.
    """
    below = z < z[:, :1] + min_p.log().unsqueeze(-1)  # no candidate where min_p is 0
    return below & (ids.unsqueeze(-1) != eos_token_ids).all(-1)


def _write_rows(logits: Tensor, rows: Tensor, ids: Tensor, new: Tensor, cleared: Tensor) -> None:
    """Write new [G, K] to tokens ids [G, K] of rows [G]; the other tokens of rows where `cleared` [G, 1] is
    True get -inf. The first write shows that the second one will not fail, before a row is cleared: a row of
    -inf alone cannot be sampled. It takes a hundredth of the time of the rest.
    """
    where, ceilings = (rows.unsqueeze(-1), ids), _row_ceilings(logits, rows, cleared)
    logits.index_put_(where, new)
    logits.clamp_(max=ceilings)
    logits.index_put_(where, new)


def _row_ceilings(logits: Tensor, rows: Tensor, cleared: Tensor) -> Tensor:
    """[R, 1] upper limits of the logits: -inf for rows [G] where `cleared` [G, 1] is True, inf for others.

    For clamp_: one pass, in place; on a CPU five to ten times as fast as masked_fill_ with a [R, 1] mask.
    """
    ceilings = torch.full((len(logits), 1), -NEG_INF, dtype=logits.dtype, device=logits.device)
    return ceilings.index_put_((rows,), torch.where(cleared, NEG_INF, -NEG_INF).to(logits.dtype))


def force_end_token(logits: Tensor, rows: Tensor, token: int, ending: Tensor) -> None:
    """Leave the ending rows no token but `token`, which ends the answer; in place.

    Args:
        logits: [R, V] float32.
        rows: [G] int64 indices of the guided rows.
        token: id of the end token.
        ending: [G] bool, the rows that end.
    """
    end_logits = logits[rows, token]
    new = end_logits.masked_fill(ending, 0.0).unsqueeze(-1)
    ids = torch.full_like(rows, token).unsqueeze(-1)
    _write_rows(logits, rows, ids, new, ending.unsqueeze(-1))
