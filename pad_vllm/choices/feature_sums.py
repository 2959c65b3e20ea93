"""What a reward model says of whole answers: sums of each dimension's features over their tokens.

    Psi_i(y) = sum over response tokens t of phi_i(y_t)       (persrm.features, the taken token)

In: token ids and a PersRM. Out: [N, D]. Knows no tokenizer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad_vllm.persrm import PersRM


@torch.no_grad()
def feature_sums(
    model: PersRM, sequences: list[tuple[list[int], list[int]]], batch_size: int = 16
) -> Tensor:
    """Feature sums Psi of responses.

    Args:
        model: the PersRM.
        sequences: N pairs (prompt_ids, response_ids).
        batch_size: sequences in one forward pass.

    Returns:
        [N, D] float32 on the CPU, in the order of `sequences`.

    Raises:
        ValueError: an empty prompt.
    """
    for number, (prompt, _) in enumerate(sequences):
        if not prompt:
            raise ValueError(
                f"sequence {number} has an empty prompt, so nothing predicts its first response "
                "token; accepted: at least one token. Begin it with the tokenizer's <bos>."
            )
    sums = torch.zeros(len(sequences), len(model.dimensions))
    # Similar lengths in one batch: less padding.
    order = sorted(range(len(sequences)), key=lambda i: sum(map(len, sequences[i])))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        sums[batch] = _batch_sums(model, [sequences[i] for i in batch])
    return sums


def _batch_sums(model: PersRM, sequences: list[tuple[list[int], list[int]]]) -> Tensor:
    rows = [torch.tensor([*prompt, *response]) for prompt, response in sequences]
    ids = pad_sequence(rows, batch_first=True).to(model.head_A.device)
    h_B, h_T = model.hidden(ids)
    sums = []
    # Features take [tokens, D, H]: one sequence at a time keeps that small beside the forward.
    for row, (prompt, response) in enumerate(sequences):
        first, stop = len(prompt), len(prompt) + len(response)
        before = slice(first - 1, stop - 1)  # a token is scored where it is predicted
        phi = model.features(h_B[row, before], h_T[row, before], ids[row, first:stop, None])
        sums.append(phi.sum((0, 1)).cpu())
    return torch.stack(sums)
