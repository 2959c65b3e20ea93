"""The largest singular values, by whichever method, are those of the whole decomposition."""

from __future__ import annotations

import pytest
import torch

from pad_vllm.training.objective.singular_values import largest_singular_values


@pytest.mark.parametrize(("size", "rank"), [(40, 8), (400, 16), (400, 300), (400, 500)])
def test_the_approximation_is_the_best_of_its_rank(size, rank):
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(2, size, size, generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    values = torch.arange(1, size + 1, dtype=torch.float64) ** -0.5  # a slowly falling spectrum
    matrix = left * values @ right
    U, S, Vt = largest_singular_values(matrix, rank)
    kept = min(rank, size)
    assert U.shape == (2, size, kept)
    assert Vt.shape == (2, kept, size)
    torch.testing.assert_close(S, values[:kept].expand(2, -1), rtol=2e-2, atol=1e-6)
    best = left[..., :kept] * values[:kept] @ right[..., :kept, :]
    error = torch.linalg.matrix_norm(matrix - U * S[..., None, :] @ Vt)
    assert (error <= 1.005 * torch.linalg.matrix_norm(matrix - best) + 1e-6).all()


def test_it_is_the_same_each_time_and_leaves_the_random_numbers_alone():
    matrix = torch.randn(300, 300, dtype=torch.float64)
    torch.manual_seed(3)
    expected = torch.rand(1)
    first = largest_singular_values(matrix, 8)
    torch.manual_seed(3)
    again = largest_singular_values(matrix, 8)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
