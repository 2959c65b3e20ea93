"""The loss of a batch of prompts and the sums behind it, against loops over tokens, cuts and pairs."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import pytest
import tiny
import torch

from pad_vllm.training.data.prompt_groups import PREFIX_LENGTHS, PromptGroup
from pad_vllm.training.objective import loss_module as module
from pad_vllm.training.objective.fork_cache import compute_responses
from pad_vllm.training.objective.loss_module import (
    PairExample,
    PreferenceObjective,
    cached_feature_sums,
    trunk_hidden,
)
from pad_vllm.training.settings import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = ((3, 30), (5, 2, 26, 60), (7, 1, 4))
"""Tokens of every response of every prompt: some end before the first cut, some after the second."""

RECIPE = Recipe(b=0.3, branch_b=0.7, sharpness=0.8, reward_weight=0.9, policy_weight=1.3)


@pytest.fixture(scope="module")
def groups():
    rng = random.Random(0)

    def ids(count):
        return rng.choices(range(3, 333), k=count)

    made = []
    for number, lengths in enumerate(LENGTHS):
        responses, scores = (
            list(map(ids, lengths)),
            torch.zeros(len(lengths), len(PREFIX_LENGTHS) + 1, 2),
        )
        made.append(PromptGroup(str(number), "s", ids(4 + 3 * number), responses, scores, (), ()))
    return made


@pytest.fixture(scope="module")
def model():
    return tiny.persrm("llama", 2, ("a", "b"), std=0.03)  # small rewards: no sigmoid is saturated


@pytest.fixture(scope="module")
def batch(model, groups):
    """An example a prompt, with an unknown score in one of them, and with branches."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for row in compute_responses(model, groups, 6):
        scores = torch.randn(len(row), len(PREFIX_LENGTHS) + 1, 2, generator=generator)
        w = torch.randn(2, 2, generator=generator)
        responses = [
            replace(
                response,
                branch_at=torch.tensor([2, len(response.chosen) - 1]),
                branch_scores=torch.randn(2, 6, 2, generator=generator),
            )
            if len(response.chosen) > 3
            else response
            for response in row
        ]
        made.append(PairExample(responses, scores, w))
    made[1].scores[2, :, 0] = torch.nan
    return made


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def without_branches(batch):
    return [
        replace(e, responses=[replace(r, branch_at=None, branch_scores=None) for r in e.responses])
        for e in batch
    ]


def pair_loss(values, scores, w, b):
    """(sum, count) over the pairs of one list: values [N] and scores [N][D] under one w [D]."""
    total, count = 0.0, 0
    weighed = [d for d, weight in enumerate(w) if weight != 0]
    for i, j in itertools.permutations(range(len(values)), 2):
        if any(math.isnan(scores[one][d]) for one in (i, j) for d in weighed):
            continue
        margin = sum(w[d] * (scores[i][d] - scores[j][d]) for d in weighed) / math.hypot(*w)
        wanted = 1 / (1 + math.exp(-RECIPE.sharpness * margin))
        x = b * (values[i] - values[j])
        total += wanted * softplus(-x) + (1 - wanted) * softplus(x)
        count += 1
    return total, count


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def mean(parts):
    sums, counts = zip(*parts, strict=True)
    return sum(sums) / sum(counts)


def slow_loss(model, example):
    """One prompt's loss, a number at a time."""
    phis = [
        model.features(r.h_B, h, r.ids)
        for r, h in zip(example.responses, trunk_hidden(model, example.responses), strict=True)
    ]
    reward, policy, branch = [], [], []
    for row in example.w:
        w = row / row.norm()
        rewards, ratios = [], []
        for response, phi in zip(example.responses, phis, strict=True):
            rows = torch.arange(len(phi))
            r_w = phi @ w
            guided = (response.z_B + r_w).log_softmax(-1) - response.z_B.log_softmax(-1)
            rewards.append(r_w[rows, response.chosen])
            ratios.append(guided[rows, response.chosen])
            if response.branch_at is not None:
                branches = zip(response.branch_at, response.branch_scores, strict=True)
                branch += [
                    pair_loss(r_w[t].tolist(), s.tolist(), w.tolist(), RECIPE.branch_b)
                    for t, s in branches
                ]
        for number, cut in enumerate((*PREFIX_LENGTHS, None)):
            scores = example.scores[:, number].tolist()
            for parts, values in ((reward, rewards), (policy, ratios)):
                sums = [v[:cut].sum().item() for v in values]
                parts.append(pair_loss(sums, scores, w.tolist(), RECIPE.b))
    whole = RECIPE.reward_weight * mean(reward) + RECIPE.policy_weight * mean(policy)
    return whole + RECIPE.branch_weight * mean(branch)


def test_the_loss_is_the_one_written_out_pair_by_pair(model, batch):
    objective = PreferenceObjective(model, RECIPE)
    with torch.no_grad():
        expected = [slow_loss(model, example) for example in batch]
        for example, loss in zip(batch, expected, strict=True):
            assert objective([example], 1).item() == pytest.approx(loss, rel=2e-5)
        whole = objective(batch, 3).item()
    assert whole == pytest.approx(sum(expected) / 3, rel=2e-5)


@pytest.mark.parametrize("parts", [((0,), (1,), (2,)), ((2, 0), (1,))])
def test_a_batchs_gradient_is_the_sum_of_its_parts(model, batch, parts):
    objective = PreferenceObjective(model, RECIPE)
    whole = gradients(model, objective(batch, 3))
    loss = sum(objective([batch[i] for i in part], 3) for part in parts)
    split = gradients(model, loss)
    assert whole.keys() == split.keys()
    for name, gradient in whole.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert torch.allclose(gradient, split[name], rtol=1e-4, atol=1e-4 * scale), name


def test_a_prompt_counts_the_same_however_many_pairs_it_has(model, batch):
    objective = PreferenceObjective(model, RECIPE)
    with torch.no_grad():
        few, many = (objective([example], 1).item() for example in batch[:2])
        both = objective(batch[:2], 2).item()
        repeated = [replace(example, w=example.w.repeat(5, 1)) for example in batch[:2]]
        more = objective(repeated, 2).item()
    assert few != pytest.approx(many, rel=1e-3)
    assert both == pytest.approx((few + many) / 2, rel=1e-5)
    assert more == pytest.approx(both, rel=1e-5)


def test_gradients_reach_the_lora_and_the_heads_and_no_layer_of_the_backbone(model, batch):
    found = gradients(model, PreferenceObjective(model, RECIPE)(batch, 3))
    trained = {name for name in found if "lora_" in name} | {"head_A", "head_B"}
    assert found.keys() == trained
    assert len(trained) == 2 + 2 * len(model.lora_weights())


def test_on_a_frozen_trunk_the_loss_is_the_same_and_only_heads_learn(model, batch):
    objective = PreferenceObjective(model, RECIPE)
    frozen = []
    for example in batch:
        with torch.no_grad():
            hidden = trunk_hidden(model, example.responses)
        rows = zip(example.responses, hidden, strict=True)
        frozen.append(replace(example, responses=[replace(r, h_T=h) for r, h in rows]))
    loss, other = objective(batch, 3), objective(frozen, 3)
    assert other.item() == pytest.approx(loss.item(), rel=1e-5)
    assert gradients(model, other).keys() == {"head_A", "head_B"}


def test_branches_of_weight_0_are_left_out(model, batch):
    plain = without_branches(batch)
    losses = {}
    with torch.no_grad():
        for weight in (0.0, 1.0, 2.0):
            objective = PreferenceObjective(model, replace(RECIPE, branch_weight=weight))
            losses[weight] = objective(batch, 3).item()
            losses["without"] = objective(plain, 3).item()
            assert losses["without"] == pytest.approx(losses[0.0], rel=1e-6)
    assert losses[1.0] > losses[0.0] + 0.1
    added = losses[1.0] - losses[0.0]
    assert losses[2.0] - losses[0.0] == pytest.approx(2 * added, rel=1e-4)


def test_psi_is_the_sum_over_tokens_of_the_taken_tokens_features(model, groups):
    for group, responses in zip(groups, compute_responses(model, groups, 6), strict=True):
        found = cached_feature_sums(model, responses)
        for row, tokens in zip(found, group.response_ids, strict=True):
            ids = torch.tensor([*group.prompt_ids, *tokens])
            with torch.no_grad():
                h_B, h_T = (h[0] for h in model.hidden_twice(ids[None, :-1]))
                every = model.features(h_B, h_T, ids[1:, None])[:, 0]
            expected = every[len(group.prompt_ids) - 1 :].sum(0)
            assert torch.allclose(row, expected, rtol=1e-4, atol=1e-3)
        assert found.shape == (len(responses), 2)
        assert not found.requires_grad


def test_kept_trunk_states_are_returned_and_agree_with_those_computed(model, groups, monkeypatch):
    [responses] = compute_responses(model, groups[1:2], 6)
    with torch.no_grad():
        computed = trunk_hidden(model, responses)
    for group_ids, hidden in zip(groups[1].response_ids, computed, strict=True):
        ids = torch.tensor([[*groups[1].prompt_ids, *group_ids][:-1]])
        with torch.no_grad():
            slow = model.hidden_twice(ids)[1][0, -len(group_ids) :]
        assert torch.allclose(hidden, slow, atol=5e-5)
    stored = [replace(r, h_T=h) for r, h in zip(responses, computed, strict=True)]
    with torch.no_grad():
        partly = trunk_hidden(model, [*stored[:-1], responses[-1]])
    assert all(torch.equal(one, other) for one, other in zip(partly, computed, strict=True))

    def never(forked):
        raise AssertionError("layers run")

    monkeypatch.setattr(model, "trunk_states", never)
    assert all(
        one is other.h_T for one, other in zip(trunk_hidden(model, stored), stored, strict=True)
    )


def test_beginnings_are_sums_up_to_every_cut():
    lengths = torch.tensor([1, 24, 25, 47, 48, 49, 96, 97, 130, 2])
    values = torch.randn(int(lengths.sum()), 3, generator=torch.Generator().manual_seed(0))
    found = module._prefix_sums(values, lengths)
    assert found.shape == (len(PREFIX_LENGTHS) + 1, 3, len(lengths))
    start = 0
    for number, length in enumerate(lengths.tolist()):
        own = values[start : start + length]
        start += length
        for row, cut in enumerate((*PREFIX_LENGTHS, None)):
            assert torch.allclose(found[row, :, number], own[:cut].sum(0), atol=1e-4)


def test_prompts_with_different_numbers_of_preferences_share_a_batch(model, batch):
    objective = PreferenceObjective(model, RECIPE)
    few = [batch[0], replace(batch[1], w=batch[1].w[:1]), batch[2]]
    together = objective(few, 3)
    alone = sum(objective([example], 3) for example in few)
    assert float(together) == pytest.approx(float(alone), rel=1e-5)


def test_a_worker_without_a_prompt_adds_nothing_and_takes_part(model):
    loss = PreferenceObjective(model, RECIPE)([], 3)
    assert float(loss) == 0.0
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    grads = gradients(model, loss)
    assert set(grads) == trained
    assert not any(grad.any() for grad in grads.values())


def short_groups():
    """Four prompts with six responses of 8 tokens each: no prefix is shorter than the whole."""
    rng = random.Random(1)
    scores = torch.zeros(6, len(PREFIX_LENGTHS) + 1, 2)
    return [
        PromptGroup(
            str(number),
            "s",
            rng.choices(range(3, 333), k=5),
            [rng.choices(range(3, 333), k=8) for _ in range(6)],
            scores,
            (),
            (),
        )
        for number in range(4)
    ]


@pytest.mark.parametrize("mixes", [[], [[1.0, 1.0], [-1.0, 0.6]]], ids=["singles", "and mixes"])
def test_planted_heads_are_found_at_their_scale_by_singles_and_mixes_alike(mixes):
    layers = tiny.COMMON["num_hidden_layers"]
    planted = tiny.persrm("llama", layers, ("a", "b"), std=0.2)
    recipe = Recipe(b=0.5, sharpness=1.0, policy_weight=0.0, branch_weight=0.0)
    responses = list(compute_responses(planted, short_groups(), 6))
    truth = [cached_feature_sums(planted, row) for row in responses]
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], *mixes])
    batch = [
        PairExample(row, (recipe.b * psi).unsqueeze(1).expand(-1, len(PREFIX_LENGTHS) + 1, -1), w)
        for row, psi in zip(responses, truth, strict=True)
    ]
    fitted = tiny.persrm("llama", layers, ("a", "b"), std=0.05)
    trained = [p for p in fitted.parameters() if p.requires_grad]
    optimiser = torch.optim.LBFGS(trained, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = PreferenceObjective(fitted, recipe)(batch, len(batch))
        loss.backward()
        return loss

    optimiser.step(closure)
    wanted = torch.cat([psi - psi.mean(0) for psi in truth])
    found = [cached_feature_sums(fitted, row) for row in responses]
    error = (torch.cat([psi - psi.mean(0) for psi in found]) - wanted).norm() / wanted.norm()
    assert error < 0.02
