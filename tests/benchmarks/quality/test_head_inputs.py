"""Forms of heads on planted rewards: each explains what it can see; the factors say how far off they are."""

from __future__ import annotations

import pytest
import torch

from benchmarks.quality import head_inputs
from benchmarks.quality.head_inputs import FORMS, Heads, Tokens, rewards_of

H, K, V, N = 16, 6, 40, 400
EMBEDDING = torch.randn(V, H, generator=torch.Generator().manual_seed(1))


def planted(direction_of):
    """Tokens whose teacher has the directions [n, H] that a function makes of them, for two instructions."""
    draw = torch.Generator().manual_seed(2)
    last, middle = torch.randn(2, N, H, generator=draw)
    position = torch.arange(N) % 10
    tokens = Tokens(
        last=last,
        middle=middle,
        history=last.cumsum(0) / (torch.arange(N) + 1).unsqueeze(-1),
        ids=torch.randint(V, (N, K), generator=draw).int(),
        z=torch.randn(N, K, generator=draw).sort(-1, descending=True).values,
        rewards=torch.zeros(N, K, 2),
        position=position,
        prompt=torch.arange(N) // 10,
    )
    directions = direction_of(tokens).unsqueeze(1).expand(-1, 2, -1)
    return Tokens(**{**vars(tokens), "rewards": rewards_of(EMBEDDING, directions, tokens)})


def fitted_share(tokens, **options):
    torch.manual_seed(0)
    train, held_out = tokens[tokens.prompt < 30], tokens[tokens.prompt >= 30]
    heads = Heads(train, **options)
    head_inputs.fit(heads, EMBEDDING, train, train)
    return head_inputs._share(head_inputs._products(heads, EMBEDDING, held_out).sum(0)).mean()


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(head_inputs, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(head_inputs, "TOKENS_AT_ONCE", 32)


def test_a_constant_is_found_by_a_constant_alone():
    tokens = planted(lambda tokens: torch.ones(N, H))
    assert fitted_share(tokens, **FORMS["constant alone"]) > 0.95


def test_what_the_middle_state_decides_is_seen_by_the_form_that_reads_it():
    M = torch.randn(H, H, generator=torch.Generator().manual_seed(3)) / 4
    tokens = planted(lambda tokens: tokens.middle @ M)
    assert fitted_share(tokens, rank=8) < 0.2
    assert fitted_share(tokens, rank=16, states=("last", "middle")) > 0.6


def test_first_tokens_may_have_heads_of_their_own():
    tokens = planted(
        lambda tokens: (
            torch.where(tokens.position < head_inputs.EARLY, 1.0, -1.0)[:, None] * torch.ones(N, H)
        )
    )
    assert fitted_share(tokens, rank=4, constant=True, early=True) > 0.8
    assert fitted_share(tokens, rank=0, constant=True) < 0.5


def test_rewards_that_are_too_large_by_half_have_a_factor_of_two_thirds():
    tokens = planted(lambda tokens: torch.ones(N, H))
    heads = Heads(tokens, rank=0, constant=True)
    heads.c.data += 1.5
    rows = head_inputs.trust(heads, EMBEDDING, tokens, tokens)
    assert {row["factor"] for row in rows if row["candidates"]} == {0.667}
    assert sum(row["candidates"] for row in rows if "of the best" in row["group"]) == N * K
