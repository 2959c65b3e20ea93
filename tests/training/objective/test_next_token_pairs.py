"""Pairs of next tokens: where they are drawn, what a scorer reads there, which ones say nothing."""

from __future__ import annotations

import random

import pytest
import tiny
import torch

from pad_vllm.evaluation.lexical_scorers import LEXICAL_SCORERS
from pad_vllm.training.objective.next_token_pairs import SCORER_WINDOW, score_branches, token_scorer

TOKENIZER = tiny.tokenizer()


def tokens(count, seed=0):
    return random.Random(seed).choices(range(3, 259), k=count)


def rows(count, k=4, seed=0):
    """Different candidates [count, K] at every token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(256, generator=generator)[:k] for _ in range(count)])


def last(ids):
    """A score of two dimensions that tells all candidates apart."""
    return [float(ids[-1]), 10.0 + ids[-1]]


def test_a_share_of_the_places_is_drawn():
    response, found = tokens(2000), {}
    for share in (0.0, 0.1, 0.5, 1.0):
        found[share] = score_branches(response, rows(2000), last, share, 0)["at"].tolist()
    assert found[0.0] == []
    assert 140 < len(found[0.1]) < 260
    assert 900 < len(found[0.5]) < 1100
    assert found[1.0] == list(range(2, 2000))
    assert set(found[0.1]) <= set(found[0.5])


def test_the_draw_is_a_function_of_seed_and_tokens():
    one = score_branches(tokens(300), rows(300), last, 0.2, 0)
    random.seed(5)
    torch.manual_seed(5)
    score_branches(tokens(80, seed=3), rows(80), last, 0.7, 1)
    random.random()
    again = score_branches(tokens(300), rows(300), last, 0.2, 0)
    assert torch.equal(one["at"], again["at"])
    assert torch.equal(one["scores"], again["scores"])
    other_candidates = score_branches(tokens(300), rows(300, seed=1), last, 0.2, 0)
    assert torch.equal(one["at"], other_candidates["at"])
    other_seed = score_branches(tokens(300), rows(300), last, 0.2, 1)
    other_tokens = score_branches(tokens(300, seed=1), rows(300), last, 0.2, 0)
    assert one["at"].tolist() != other_seed["at"].tolist()
    assert one["at"].tolist() != other_tokens["at"].tolist()


def test_a_place_where_all_candidates_score_alike_is_left_out():
    candidates = torch.tensor([[1, 3], [1, 2], [5, 7], [2, 5], [2, 8], [3, 4]])
    found = score_branches(tokens(6), candidates, lambda ids: [0.1, float(ids[-1] % 2)], 1.0, 0)
    assert found["at"].tolist() == [3, 5]
    assert found["scores"][:, :, 1].tolist() == [[-0.5, 0.5], [0.5, -0.5]]


def test_one_candidate_that_differs_is_enough_wherever_it_stands():
    candidates = torch.tensor([[0, 0, 0]] * 2 + [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    found = score_branches(tokens(6), candidates, lambda ids: [float(ids[-1])], 1.0, 0)
    assert found["at"].tolist() == [2, 3, 4]


def test_scores_lie_about_their_mean_and_keep_their_differences():
    candidates = rows(40)
    found = score_branches(tokens(40), candidates, last, 0.5, 0)
    scores, at = found["scores"], found["at"]
    assert scores.shape == (len(at), 4, 2)
    assert len(at) > 5
    assert scores.mean(1).abs().max() < 1e-4
    differences = candidates[at].float() - candidates[at, :1]
    for d in range(2):
        assert torch.allclose(scores[:, :, d] - scores[:, :1, d], differences, atol=1e-4)


def test_a_scorer_reads_the_last_words_before_the_candidate_and_the_candidate():
    response, candidates, read = tokens(60), rows(60, k=2), []

    def scored(ids):
        read.append(list(ids))
        return last(ids)

    at = score_branches(response, candidates, scored, 0.4, 0)["at"].tolist()
    assert min(at) < SCORER_WINDOW < max(at)
    expected = []
    for t in at:
        for candidate in candidates[t].tolist():
            text = [*response[:t], candidate]
            expected.append(text[-SCORER_WINDOW - 1 :])
    assert [ids for ids in read if ids in expected] == expected
    assert max(map(len, read)) == SCORER_WINDOW + 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_found_has_the_shape_of_something_found(share):
    found = score_branches(tokens(9), rows(9), lambda ids: [1.0, 2.0, 3.0], share, 0)
    assert found["at"].dtype == torch.long
    assert found["at"].shape == (0,)
    assert found["scores"].shape == (0, 4, 3)


def test_a_dimension_without_scorer_scores_nothing():
    text = "I love my nice old house"
    ids = [*TOKENIZER.encode(text), TOKENIZER.eos_token_id]
    scored = token_scorer(TOKENIZER, ("positive", None, "personal"))
    positive, unscored, personal = scored(ids)
    assert (positive, unscored) == (LEXICAL_SCORERS["positive"](text), 0.0)
    assert positive > 0.5
    assert personal == pytest.approx(200 / 6)
    letters = torch.tensor([TOKENIZER.encode("e ,x")] * len(ids))
    found = score_branches(ids, letters, scored, 1.0, 0)
    assert len(found["at"]) > 3
    assert (found["scores"][:, :, 1] == 0).all()
    assert (found["scores"][:, :, 0] != 0).any()
