"""Many users: a prior helps where taste is shared and harms none where it is not; files that name users."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
import typer
from typer.testing import CliRunner

from pad_vllm.choices.fit_users import fit_users
from pad_vllm.choices.fit_weights import fit_weights
from pad_vllm.choices.taste_prior import MIN_USERS, NO_PRIOR, estimate_prior
from pad_vllm.cli import fit as fit_command
from pad_vllm.training.user_choices import choices_by_user, read_choices

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("helpful", "brief", "humor")


def users(share, *, count=40, choices=10, dimensions=8, seed=0):
    """(name -> differences [N, D], true tastes [U, D]): a share of every taste's square is common."""
    source = torch.Generator().manual_seed(seed)
    common = torch.nn.functional.normalize(torch.randn(dimensions, generator=source), dim=-1)
    own = torch.nn.functional.normalize(torch.randn(count, dimensions, generator=source), dim=-1)
    w = torch.nn.functional.normalize(share**0.5 * common + (1 - share) ** 0.5 * own, dim=-1)
    x = torch.randn(count, choices, dimensions, generator=source)
    odds = 3.4 * (x @ w.unsqueeze(-1)).squeeze(-1)
    against = torch.rand(count, choices, generator=source) > odds.sigmoid()
    x = torch.where(against.unsqueeze(-1), -x, x) * torch.linspace(0.1, 30.0, dimensions)
    return {f"user {i}": rows for i, rows in enumerate(x)}, w / torch.linspace(
        0.1, 30.0, dimensions
    )


def agreement(fits, w):
    """Mean cosine of fitted and true weights, in units in which features have one spread."""
    unit = torch.linspace(0.1, 30.0, w.shape[1])
    found = torch.stack([fit.w.float() for fit in fits.values()])
    return torch.cosine_similarity(found * unit, w * unit, dim=-1).mean().item()


@pytest.mark.parametrize(("share", "gain"), [(0.0, -0.01), (0.25, 0.04), (0.5, 0.12)])
def test_a_prior_helps_where_taste_is_shared_and_harms_none_where_it_is_not(share, gain):
    differences, w = users(share)
    alone = agreement(fit_users(differences, with_prior=False).fits, w)
    together = agreement(fit_users(differences).fits, w)
    assert together > alone + gain


def test_the_priors_mean_is_what_users_share():
    differences, _ = users(0.5, count=60)
    prior = estimate_prior(list(differences.values())).prior
    source = torch.Generator().manual_seed(0)
    common = torch.randn(8, generator=source).double()
    mean = prior.mean * torch.linspace(0.1, 30.0, 8)
    assert torch.cosine_similarity(mean, common, dim=0) > 0.9


def test_intervals_under_the_prior_hold_the_true_weights():
    differences, w = users(0.5, count=100)
    fits = fit_users(differences).fits
    held = [
        (one.interval[:, 0] * one.scale <= 3.4 * true)
        & (3.4 * true <= one.interval[:, 1] * one.scale)
        for one, true in zip(fits.values(), w, strict=True)
    ]
    assert 0.88 <= torch.stack(held).float().mean() <= 0.99


def test_without_the_prior_each_user_is_fitted_as_if_alone():
    differences, _ = users(0.5, count=12)
    fits = fit_users(differences, with_prior=False)
    assert fits.prior is None
    for name, rows in differences.items():
        torch.testing.assert_close(fits.fits[name].w, fit_weights(rows).w)


def test_users_of_different_numbers_of_choices_are_fitted_together():
    differences, w = users(0.5, choices=12)
    cut = {name: rows[: 1 + i % 12] for i, (name, rows) in enumerate(differences.items())}
    found = fit_users(cut)
    assert found.prior.kind != NO_PRIOR
    assert [one.choices for one in found.fits.values()] == [1 + i % 12 for i in range(40)]
    assert agreement(found.fits, w) > 0.6


@pytest.mark.parametrize("seed", range(4))
def test_few_firm_choices_of_few_users_leave_the_prior_finite(seed):
    differences, _ = users(0.0, count=12, choices=4, dimensions=3, seed=seed)
    x = torch.stack(list(differences.values()))
    spread = x.flatten(0, 1).square().mean(0).sqrt()
    prior = estimate_prior(list(differences.values())).prior
    if prior is not None:
        assert (prior.covariance.diagonal().sqrt() * spread).max() < 10


def test_fewer_choices_than_twice_the_dimensions_leave_the_prior_finite():
    """Choices of so few are told without an error by some weights, and EM used to grow until it raised."""
    source = torch.Generator().manual_seed(0)
    w = torch.randn(100, 4, generator=source) @ torch.randn(4, 12, generator=source)
    w = torch.nn.functional.normalize(w, dim=-1).unsqueeze(-1)
    x = torch.randn(100, 20, 12, generator=source)
    second = torch.rand(100, 20, 1, generator=source) > (3.4 * x @ w).sigmoid()
    found = estimate_prior(list(torch.where(second, -x, x)))
    assert all(-1.0 < value < -0.4 for value in found.left_out.values())
    assert found.prior.covariance.diagonal().max().sqrt() < 10


def test_a_few_users_have_no_prior():
    differences, _ = users(0.5, count=MIN_USERS - 1)
    assert fit_users(differences).prior is None


def test_an_error_names_the_user():
    differences, _ = users(0.5, count=3)
    differences["user 1"] = differences["user 1"][:1]
    with pytest.raises(ValueError, match="user 'user 1': 1 choices; accepted: at least 2"):
        fit_users(differences)


def line(better, other, **more):
    answers = {"prompt": "Hi", "chosen": "Hello!", "rejected": "Go away."}
    return {**answers, "chosen_weights": better, "rejected_weights": other, **more}


def write(path, lines):
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def test_users_of_a_file_are_kept_apart(tmp_path):
    lines = [line("brief=1", None, user=name) for name in ("a", "b", "a")]
    found = choices_by_user(read_choices(write(tmp_path / "c.jsonl", lines)))
    assert {name: [c.line_number for c in rows] for name, rows in found.items()} == {
        "a": [1, 3],
        "b": [2],
    }


@pytest.mark.parametrize("user", ["", " ", 3, None, "x" * 257])
def test_a_user_without_a_name_is_refused(tmp_path, user):
    with pytest.raises(ValueError, match="line 1: user is .*, not a name"):
        read_choices(write(tmp_path / "c.jsonl", [line("brief=1", None, user=user)]))


def test_lines_with_and_without_a_user_are_not_mixed(tmp_path):
    lines = [line("brief=1", None, user="a"), line("brief=1", None)]
    with pytest.raises(ValueError, match="line 1 names a user and line 2 does not"):
        choices_by_user(read_choices(write(tmp_path / "c.jsonl", lines)))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`pad-vllm fit` of a file of guided answers' choices; no base is loaded."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(fit_command, "_load_model", None)
    base = tiny.checkpoint("llama", tmp_path / "base")
    adapter = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=2, std=0.1)
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(fit_command.fit)
    return lambda *argv: CliRunner().invoke(
        app, [str(base), *map(str, argv), "--adapter", str(adapter)]
    )


def test_the_command_writes_and_prints_a_line_a_user_and_the_priors_mean(run, tmp_path):
    pairs = [("brief=1", "humor=1"), ("brief=1", "brief=-1"), ("helpful=1", "helpful=-1")]
    lines = [line(*pair, user=f"user {u}") for u in range(MIN_USERS) for pair in pairs]
    lines += [line("humor=1", "humor=-1", user="user 3")] * 4
    out = tmp_path / "fits.jsonl"
    result = run(write(tmp_path / "c.jsonl", lines), "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    first, *written = map(json.loads, out.read_text().splitlines())
    assert (first["users"], first["choices"]) == (MIN_USERS, len(lines))
    assert first["prior"]["mean"]["brief"] > first["prior"]["mean"]["humor"]
    assert [row["user"] for row in written] == [f"user {u}" for u in range(MIN_USERS)]
    weights = {row["user"]: row["dimensions"]["humor"]["w"] for row in written}
    assert max(weights, key=weights.__getitem__) == "user 3"
    for row in written:
        assert f'{row["user"]}: pad_weights: "{row["pad_weights"]}"' in result.stdout
    assert "the users' mean" in result.stdout


def test_the_command_fits_users_alone_when_asked_to(run, tmp_path):
    lines = [line("brief=1", "humor=1", user=f"u{u}") for u in range(MIN_USERS) for _ in range(2)]
    out = tmp_path / "fits.jsonl"
    result = run(write(tmp_path / "c.jsonl", lines), "--out", out, "--no-prior")
    assert result.exit_code == 0, result.output
    first, *written = map(json.loads, out.read_text().splitlines())
    assert first["prior"] is None
    assert len({row["pad_weights"] for row in written}) == 1
