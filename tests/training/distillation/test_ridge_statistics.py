"""The closed forms agree with what a solver makes of all tokens at once."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from pad_vllm.training.distillation.ridge_statistics import RidgeStatistics

H, N = 12, 300


@pytest.fixture(scope="module")
def tokens():
    """h [N, H] and d* [2, N, H], linear in it but for noise."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(N, H, generator=generator) * torch.linspace(0.3, 3, H)
    maps = torch.randn(2, H, H, generator=generator)
    return h, torch.einsum("doh,nh->dno", maps, h) + torch.randn(2, N, H, generator=generator)


def summed(h, d, parts=1):
    statistics = RidgeStatistics.zeros(2, H)
    for some, others in zip(h.chunk(parts), d.chunk(parts, dim=1), strict=True):
        statistics.add(some, others, torch.ones(len(some), 2))
    return statistics


def test_heads_of_full_rank_are_the_ridge_regression(tokens):
    h, d = tokens
    ridges = [0.1, 3.0]
    A, B = summed(h, d).low_rank_heads(H, ridges)
    for i, ridge in enumerate(ridges):
        penalty = (ridge * (h**2).sum(0).mean()).sqrt() * torch.eye(H)
        solved = torch.linalg.lstsq(
            torch.cat([h, penalty]), torch.cat([d[i], torch.zeros(H, H)])
        ).solution.T
        assert torch.allclose(B[i] @ A[i], solved, atol=2e-3)
        assert torch.allclose(summed(h, d).ridge_maps(ridge)[i].float(), solved, atol=2e-3)


def test_heads_of_a_lower_rank_err_least_of_all_maps_of_that_rank(tokens):
    h, d = tokens
    statistics = summed(h, d)
    A, B = statistics.low_rank_heads(4, [0.1, 0.1])
    assert A.shape == (2, 4, H)
    whole = statistics.ridge_maps(0.1).float()
    U, S, V = torch.linalg.svd(whole)
    plain = U[..., :4] * S[:, None, :4] @ V[:, :4]

    def error(maps):
        return ((torch.einsum("doh,nh->dno", maps, h) - d) ** 2).sum((1, 2))

    assert (error(B @ A) < error(plain)).all()


def test_sums_do_not_depend_on_how_tokens_are_parted_or_on_who_adds_them(tokens):
    h, d = tokens
    whole, parts = summed(h, d), summed(h, d, parts=7)
    two = summed(h[:100], d[:, :100]) + summed(h[100:], d[:, 100:])
    for one in (parts, two):
        for name, value in vars(whole).items():
            assert torch.allclose(value.double(), getattr(one, name).double(), atol=1e-2), name


def test_what_was_saved_is_what_is_loaded(tokens, tmp_path):
    statistics = summed(*tokens)
    assert RidgeStatistics.load(tmp_path / "none") is None
    statistics.save(tmp_path / "some")
    names = {"lessons", "tokens", "hh", "dh", "d", "power"}  # of unfinished runs on disk
    assert set(load_file(tmp_path / "some")) == names
    loaded = RidgeStatistics.load(tmp_path / "some")
    assert all(torch.equal(v, getattr(loaded, n)) for n, v in vars(statistics).items())
    assert torch.allclose(statistics.mean_direction(), tokens[1].mean(1), atol=1e-4)
    assert statistics.teacher_variance().tolist() == [1, 1]
