"""The store: what of a prompt is computed, by whom, and from which file it is read again."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from planted_preferences import Killed

from pad_vllm.training.data.prompt_groups import (
    PREFIX_LENGTHS,
    PromptGroup,
    divide_by_spread,
    score_spreads,
)
from pad_vllm.training.objective import next_token_pairs, preference_loss
from pad_vllm.training.objective import training_store as module
from pad_vllm.training.objective.loss_module import trunk_hidden
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.settings import Recipe, Settings

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = tiny.tokenizer()
SCORERS = ("letters", None)
TEXTS = (
    ("we like a small cat", "and so do you"),
    ("no", "a dog is a good friend, and old"),
    ("it is", "I think that it rains today"),
    ("yes, of course", "never in all these years"),
    ("ask me again", "ask them."),
)


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    """A scorer that tells almost all candidates apart."""
    monkeypatch.setitem(
        next_token_pairs.LEXICAL_SCORERS, "letters", lambda text: float(sum(map(ord, text)))
    )


@pytest.fixture(scope="module")
def groups():
    scores = torch.zeros(2, len(PREFIX_LENGTHS) + 1, 2)
    return [
        PromptGroup(
            str(n), "s", [5 + n, 6, 7][: 1 + n], list(map(TOKENIZER.encode, t)), scores, SCORERS, ()
        )
        for n, t in enumerate(TEXTS)
    ]


@pytest.fixture
def model():
    return tiny.persrm("llama", 2, ("a", "b"))


def settings(recipe=None, **changes):
    usual = {"candidates": 8, "branch_share": 0.4}
    return Settings("base", (), "out", recipe=Recipe(**{**usual, **(recipe or {})}), **changes)


def store(model, folder, identity="weights", **changes):
    return TrainingStore(model, TOKENIZER, settings(**changes), folder, identity)


def nothing(*_):
    """Ignores progress."""


def build(one, groups, *, rank=0, world=1, with_targets=True):
    one.build(groups, rank, world, nothing, with_targets=with_targets)
    return one


def never(*given, **named):
    raise AssertionError("computed again")


def counted(monkeypatch, owner, name):
    """What the function was called with, which goes on working."""
    calls, real = [], getattr(owner, name)

    def call(*given):
        calls.append(given)
        return real(*given)

    monkeypatch.setattr(owner, name, call)
    return calls


def same(one, other, atol=0.0):
    """Whether two rows of responses hold the same."""
    for first, second in zip(one, other, strict=True):
        for name, tensor in vars(first).items():
            twin = getattr(second, name)
            assert (tensor is None) == (twin is None), name
            if tensor is not None:
                assert torch.allclose(tensor.double(), twin.double(), rtol=0, atol=atol), name
    return True


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_responses_are_the_same_from_the_cache_and_without_one(model, groups, tmp_path):
    cached = build(store(model, tmp_path / "cache"), groups)
    fresh = build(store(model, tmp_path / "none", cached=False), groups)
    branches = 0
    for group in groups:
        for scored in (True, False):
            found = cached.responses(group, with_targets=scored)
            assert same(found, fresh.responses(group, with_targets=scored), atol=2e-5)
            assert all((one.branch_at is not None) == scored for one in found)
        branches += sum(len(one.branch_at) for one in cached.responses(group, with_targets=True))
    assert branches > 10
    assert not (tmp_path / "none").exists()


def test_a_second_store_over_the_same_folder_computes_nothing(model, groups, tmp_path, monkeypatch):
    first = build(store(model, tmp_path), groups)
    expected, written = [first.responses(g, with_targets=True) for g in groups], files(tmp_path)
    monkeypatch.setattr(module, "compute_responses", never)
    monkeypatch.setattr(next_token_pairs, "score_branches", never)
    second = build(store(model, tmp_path), groups)
    for group, row in zip(groups, expected, strict=True):
        assert same(second.responses(group, with_targets=True), row)
    assert files(tmp_path) == written


@pytest.mark.parametrize("other", ["fork", "dtype", "candidates", "identity"])
def test_what_depends_on_something_else_is_not_read(model, groups, tmp_path, other):
    first = build(store(model, tmp_path), groups)
    changes = {
        "fork": {"model": tiny.persrm("llama", 3, ("a", "b"))},
        "dtype": {"dtype": "bfloat16"},
        "candidates": {"recipe": {"candidates": 5}},
        "identity": {"identity": "other weights"},
    }
    second = store(**{"model": model, "folder": tmp_path, **changes[other]})
    assert second.fork_files.missing(groups) == groups
    assert second.branch_files.missing(groups) == groups
    second.freeze_trunk([], tmp_path / "trunk", 0, 1, nothing)
    first.freeze_trunk([], tmp_path / "trunk", 0, 1, nothing)
    assert second.trunk_files.path(groups[0]) != first.trunk_files.path(groups[0])


@pytest.mark.parametrize("change", [{"branch_share": 0.3}, {"seed": 1}])
def test_other_branches_are_drawn_from_the_same_fork_activations(
    model, groups, tmp_path, monkeypatch, change
):
    first = build(store(model, tmp_path), groups)
    monkeypatch.setattr(module, "compute_responses", never)
    second = store(model, tmp_path, recipe=change)
    assert second.branch_files.missing(groups) == groups
    build(second, groups)
    one, other = (s.responses(groups[0], with_targets=True) for s in (first, second))
    assert [r.branch_at.tolist() for r in one] != [r.branch_at.tolist() for r in other]


def test_branches_are_made_and_read_only_where_they_are_wanted(model, groups, tmp_path):
    unscored = build(store(model, tmp_path), groups, with_targets=False)
    assert not unscored.fork_files.missing(groups)
    assert unscored.branch_files.missing(groups) == groups
    none = build(store(model, tmp_path, recipe={"branch_share": 0.0}), groups)
    assert none.branch_files.missing(groups) == groups
    assert all(one.branch_at is None for one in none.responses(groups[0], with_targets=True))


def test_workers_share_the_work_and_none_does_anothers(model, groups, tmp_path, monkeypatch):
    forks = counted(monkeypatch, module, "compute_responses")
    scored = counted(monkeypatch, next_token_pairs, "score_branches")
    trunks = counted(monkeypatch, module, "trunk_hidden")
    for rank, share in ((0, groups[0::2]), (1, groups[1::2])):
        one = build(store(model, tmp_path), groups, rank=rank, world=2)
        one.freeze_trunk(groups, tmp_path / "trunk", rank, 2, nothing)
        assert [group for _, chunk, _ in forks for group in chunk] == share
        assert [ids for ids, *_ in scored] == [ids for g in share for ids in g.response_ids]
        assert len(trunks) == len(share)
        for calls in (forks, scored, trunks):
            calls.clear()
    for stored in (one.fork_files, one.branch_files, one.trunk_files):
        assert not stored.missing(groups)


def test_a_build_killed_in_between_goes_on_where_it_stopped(model, groups, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 2)
    one, reported = store(model, tmp_path), []

    def progress(what, done, count):
        reported.append((what, done, count))
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        one.build(groups, 0, 1, progress, with_targets=True)
    assert reported == [("fork activations", done, 5) for done in (0, 2, 4)]
    calls = counted(monkeypatch, module, "compute_responses")
    build(store(model, tmp_path), groups)
    assert [chunk for _, chunk, _ in calls] == [groups[4:]]
    assert not one.fork_files.missing(groups)
    assert not one.branch_files.missing(groups)


def test_a_frozen_trunk_is_what_the_top_layers_say(model, groups, tmp_path):
    one = build(store(model, tmp_path), groups, with_targets=False)
    expected = [trunk_hidden(model, one.responses(group)) for group in groups]
    one.freeze_trunk(groups, tmp_path / "trunk", 0, 1, nothing)
    for group, hidden in zip(groups, expected, strict=True):
        for n, (response, h_T) in enumerate(zip(one.responses(group), hidden, strict=True)):
            assert torch.equal(response.h_T, h_T)
            ids = torch.tensor([[*group.prompt_ids, *group.response_ids[n]][:-1]])
            slow = model.hidden_twice(ids)[1][0, -len(h_T) :]
            assert torch.allclose(h_T, slow, atol=5e-5)


def test_another_lora_has_another_trunk_and_the_same_one_is_not_run_again(
    model, groups, tmp_path, monkeypatch
):
    found, paths = [], set()
    (_, (a, b)), *_ = model.lora_weights().items()
    for changed in (None, a, b):
        if changed is not None:
            with torch.no_grad():
                changed[0, 0] += 0.5
        one = build(store(model, tmp_path), groups[:1], with_targets=False)
        hidden = trunk_hidden(model, one.responses(groups[0]))
        one.freeze_trunk(groups[:1], tmp_path / "trunk", 0, 1, nothing)
        paths.add(one.trunk_files.path(groups[0]))
        found.append(one.responses(groups[0])[0].h_T)
        assert torch.equal(found[-1], hidden[0])
    assert len(paths) == 3
    assert not torch.equal(found[0], found[1])
    monkeypatch.setattr(module, "trunk_hidden", never)
    with torch.no_grad():
        model.head_B.add_(1.0)
    again = store(model, tmp_path)
    again.freeze_trunk(groups[:1], tmp_path / "trunk", 0, 1, nothing)
    assert torch.equal(again.responses(groups[0])[0].h_T, found[-1])


def test_responses_of_a_bfloat16_backbone_keep_its_type(model, groups, tmp_path):
    half = tiny.persrm("llama", 2, ("a", "b"))
    half.backbone.to(torch.bfloat16)
    one = build(store(half, tmp_path, dtype="bfloat16"), groups[:1])
    [response, _] = one.responses(groups[0])
    assert (response.forked.dtype, response.h_B.dtype) == (torch.bfloat16, torch.bfloat16)
    assert response.z_B.dtype == torch.float32
    fresh = dataclasses.replace(one.settings, cached=False)
    computed = TrainingStore(half, TOKENIZER, fresh, tmp_path, "weights").responses(groups[0])
    assert torch.equal(response.forked, computed[0].forked)


@pytest.mark.parametrize("scorers", [(None, "letters"), ("letters", "other"), ("letters",)])
def test_other_scorers_or_another_order_read_no_scores_of_the_first(
    groups, model, tmp_path, monkeypatch, scorers
):
    monkeypatch.setitem(next_token_pairs.LEXICAL_SCORERS, "other", lambda text: float(len(text)))
    for wanted in (SCORERS, scorers):
        rescored = [dataclasses.replace(group, prefix_scorers=wanted) for group in groups]
        store = TrainingStore(model, TOKENIZER, settings(), tmp_path, "id")
        store.build(rescored, 0, 1, lambda *_: None, with_targets=True)
        plain = TrainingStore(model, TOKENIZER, settings(cached=False), tmp_path, "id")
        for group in rescored:
            stored, made = (one.responses(group, with_targets=True) for one in (store, plain))
            for a, b in zip(stored, made, strict=True):
                assert torch.equal(a.branch_scores, b.branch_scores)


def test_a_trunk_frozen_again_is_the_new_one(groups, model, tmp_path):
    store = TrainingStore(model, TOKENIZER, settings(), tmp_path / "cache", "id")
    store.build(groups, 0, 1, lambda *_: None, with_targets=False)
    for _ in range(2):
        with torch.no_grad():
            for _, b in model.lora_weights().values():
                b.add_(0.05)
        store.freeze_trunk(groups, tmp_path / "trunk", 0, 1, lambda *_: None)
        for group in groups:
            forked = store.fork_files.read(group)
            whole = [module.CachedResponse(**tensors) for tensors in forked]
            fresh = trunk_hidden(model, whole)
            for stored, wanted in zip(store.responses(group), fresh, strict=True):
                assert torch.allclose(stored.h_T, wanted, atol=1e-6)


def test_two_scorers_of_very_different_scales_give_branch_losses_of_like_size(
    groups, model, tmp_path, monkeypatch
):
    monkeypatch.setitem(
        next_token_pairs.LEXICAL_SCORERS, "quiet", lambda text: sum(map(ord, text)) / 1000
    )
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(len(groups), 2, len(PREFIX_LENGTHS) + 1, 1, generator=generator) / 5
    both = torch.cat([score, 1000 * score], -1)
    raw = [
        dataclasses.replace(group, scores=scores, prefix_scorers=("quiet", "letters"))
        for group, scores in zip(groups, both, strict=True)
    ]
    in_spreads = divide_by_spread(raw, score_spreads(raw))
    for cached in (True, False):
        one = build(store(model, tmp_path, cached=cached), in_spreads)
        rows = [row for group in in_spreads for row in one.responses(group, with_targets=True)]
        scores = torch.cat([row.branch_scores for row in rows])
        phi = 3.0 * scores.sign()  # sure, and right about either
        quiet, loud = (
            preference_loss.branch_loss(phi, w[None], scores, 1.0, 1.0) for w in torch.eye(2)
        )
        assert float(loud) == pytest.approx(float(quiet), rel=1e-3)


@pytest.mark.parametrize("fork_layer", [2, 4])
def test_what_a_build_takes_is_known_before(groups, tmp_path, fork_layer):
    model = tiny.persrm("llama", fork_layer, ("kind", "curt"))
    settings = Settings(
        str(tmp_path), (), str(tmp_path), recipe=Recipe(candidates=5, branch_share=0.0)
    )
    store = TrainingStore(model, TOKENIZER, settings, tmp_path / "cache", "weights")
    work = store.work(groups)
    lengths = [len(g.prompt_ids) + len(ids) - 1 for g in groups for ids in g.response_ids]
    assert work.tokens == sum(lengths)
    store.build(groups, 0, 1, lambda *_: None, with_targets=False)
    files = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.safetensors"))
    headers = 1000 * len(groups)
    assert work.num_bytes <= files <= work.num_bytes + headers + 2 * sum(lengths)
    assert store.work(groups) == (0, 0)
