"""The fork cache: what is computed once, the names of its files, and what is never read."""

from __future__ import annotations

import dataclasses
import random

import pytest
import tiny
import torch
from planted_preferences import Killed

from pad_vllm.training.data.prompt_groups import PREFIX_LENGTHS, PromptGroup
from pad_vllm.training.objective import fork_cache
from pad_vllm.training.objective.fork_cache import (
    CachedResponse,
    GroupTensorFiles,
    compute_responses,
    stored_tensors,
    training_candidates,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def group(prompt_ids, *response_ids, score=0.0):
    scores = torch.full((len(response_ids), len(PREFIX_LENGTHS) + 1, 1), score)
    return PromptGroup(
        "key", "s", list(prompt_ids), list(map(list, response_ids)), scores, (None,), ()
    )


def ids(count, seed=0):
    return random.Random(f"{seed} {count}").choices(range(3, 333), k=count)


def response(**changes):
    """Of 3 tokens after 5, in the types of a bfloat16 backbone."""
    made = CachedResponse(
        forked=torch.randn(7, 4).bfloat16(),
        h_B=torch.randn(3, 4).bfloat16(),
        ids=torch.tensor([[7, 1, 200_000], [5, 4, 3], [9, 8, 7]]),
        z_B=torch.randn(3, 3),
        chosen=torch.tensor([2, 0, 1]),
    )
    return dataclasses.replace(made, **changes)


def test_a_taken_token_outside_the_top_k_takes_the_last_candidates_place():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 12, generator=generator)
    taken = torch.randint(12, (60,), generator=generator)
    found, z_B, chosen = training_candidates(logits, taken, 4)
    outside = 0
    for row, token in enumerate(taken.tolist()):
        best = sorted(range(12), key=lambda a, row=row: -logits[row, a].item())[:4]
        outside += token not in best
        expected = best if token in best else [*best[:3], token]
        assert found[row].tolist() == expected
        assert z_B[row].tolist() == [logits[row, a].item() for a in expected]
        assert chosen[row] == expected.index(token)
    assert 10 < outside < 50


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_batches_of_any_lengths_say_what_each_response_says_alone(family):
    model = tiny.persrm(family, 2, ("a", "b"))
    groups = [
        group(ids(9), ids(30), ids(2), ids(5)),
        group(ids(1), ids(1), ids(24)),
        group(ids(25), ids(3), ids(11)),
    ]
    batched = compute_responses(model, groups, 6, batch_size=3)
    assert [len(row) for row in batched] == [3, 2, 2]
    for one, row in zip(groups, batched, strict=True):
        for tokens, found in zip(one.response_ids, row, strict=True):
            [[alone]] = compute_responses(model, [group(one.prompt_ids, tokens)], 6)
            assert found.forked.shape == (len(one.prompt_ids) + len(tokens) - 1, 64)
            assert found.ids.gather(1, found.chosen[:, None]).flatten().tolist() == tokens
            assert torch.equal(found.ids, alone.ids)
            assert torch.equal(found.chosen, alone.chosen)
            for name in ("forked", "h_B", "z_B"):
                pair = getattr(found, name), getattr(alone, name)
                assert torch.allclose(*pair, rtol=1e-5, atol=2e-5), name


def test_a_response_does_not_hold_on_to_the_batch_it_was_computed_in():
    model = tiny.persrm("llama", 2, ("a",))
    for found in compute_responses(model, [group(ids(4), ids(3), ids(40))], 5)[0]:
        for name, tensor in vars(found).items():
            assert tensor is None or tensor.untyped_storage().nbytes() == tensor.nbytes, name


def test_a_tail_is_the_rows_that_predict_the_responses_tokens():
    padded = torch.arange(10.0).unsqueeze(1)
    assert response().response_rows(padded).flatten().tolist() == [4, 5, 6]
    assert response().response_rows(padded[:7]).flatten().tolist() == [4, 5, 6]


def test_a_response_moves_with_all_it_holds():
    moved = response(h_T=torch.randn(3, 4)).to(torch.device("meta"))
    set_ = {name for name, tensor in vars(moved).items() if tensor is not None}
    assert set_ == {"forked", "h_B", "ids", "z_B", "chosen", "h_T"}
    assert all(getattr(moved, name).is_meta for name in set_)


def test_what_is_kept_comes_back_in_its_type_order_and_shape(tmp_path):
    many = group([3], *([n] for n in range(12)))
    rows = [
        {
            "number": torch.tensor([n], dtype=torch.int16),
            "half": torch.randn(2, 3).bfloat16(),
            "turned": torch.randn(3, 2).T,
            "none": torch.zeros(0, 4, 2),
            "with.dot": torch.tensor(float(n)),
        }
        for n in range(12)
    ]
    files = GroupTensorFiles(tmp_path, {})
    files.write(many, rows)
    for row, found in zip(rows, files.read(many), strict=True):
        assert found.keys() == row.keys()
        for name, tensor in found.items():
            assert tensor.dtype == row[name].dtype
            assert tensor.shape == row[name].shape
            assert torch.equal(tensor, row[name])


def test_missing_are_those_not_written_in_their_order(tmp_path):
    groups = [group([n], [4], [5]) for n in range(5)]
    files = GroupTensorFiles(tmp_path / "deeper", {})
    assert files.missing(groups) == groups
    for one in (groups[3], groups[1]):
        files.write(one, [{}, {}])
    assert files.missing(groups) == [groups[0], groups[2], groups[4]]
    assert GroupTensorFiles(tmp_path / "deeper", {"more": 1}).missing(groups) == groups


def test_a_files_name_tells_what_it_depends_on_and_whose_tokens_it_holds(tmp_path):
    groups = [
        group([3, 4], [5, 6], [7]),
        group([3], [4, 5, 6], [7]),
        group([3, 4], [5], [6, 7]),
        group([3, 4], [7], [5, 6]),
        group([34], [5, 6], [7]),
    ]
    stores = [
        GroupTensorFiles(tmp_path, on) for on in ({}, {"a": 1}, {"a": "1"}, {"a": 2}, {"b": 1})
    ]
    names = {files.path(one).name for files in stores for one in groups}
    assert len(names) == len(groups) * len(stores)
    one, other = ({"a": 1, "b": [2]}, {"b": [2], "a": 1})
    assert GroupTensorFiles(tmp_path, one).path(groups[0]) == GroupTensorFiles(
        tmp_path, other
    ).path(groups[0])
    rescored = group([3, 4], [5, 6], [7], score=2.0)
    assert stores[0].path(rescored) == stores[0].path(groups[0])


def test_a_half_written_file_is_never_taken_for_a_whole_one(tmp_path, monkeypatch):
    one, files = group([3], [4]), GroupTensorFiles(tmp_path, {})
    save = fork_cache.save_file

    def killed(named, path):
        save(named, path)
        path.write_bytes(path.read_bytes()[:-3])
        raise Killed

    monkeypatch.setattr(fork_cache, "save_file", killed)
    with pytest.raises(Killed):
        files.write(one, [{"x": torch.ones(4)}])
    assert [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list(tmp_path.rglob("*.safetensors"))
    assert files.missing([one]) == [one]
    monkeypatch.setattr(fork_cache, "save_file", save)
    files.write(one, [{"x": torch.ones(4)}])
    monkeypatch.setattr(fork_cache, "save_file", killed)
    with pytest.raises(Killed):
        files.write(one, [{"x": torch.zeros(4)}])
    assert torch.equal(files.read(one)[0]["x"], torch.ones(4))


def test_a_compact_response_is_the_same_in_fewer_bits(tmp_path):
    one = response(h_T=torch.randn(3, 4), branch_at=torch.tensor([2]))
    files = GroupTensorFiles(tmp_path, {})
    files.write(group([3], [4]), [stored_tensors(one)])
    found = CachedResponse(**files.read(group([3], [4]))[0])
    for name in ("forked", "h_B", "ids", "z_B", "chosen"):
        assert torch.equal(getattr(found, name), getattr(one, name)), name
    assert (found.forked.dtype, found.h_B.dtype) == (torch.bfloat16, torch.bfloat16)
    assert (found.ids.dtype, found.chosen.dtype) == (torch.int32, torch.int16)
    assert found.h_T is found.branch_at is found.branch_scores is None


def test_two_hosts_whose_processes_have_one_number_write_drafts_of_their_own(tmp_path, monkeypatch):
    drafts, save = [], fork_cache.save_file
    monkeypatch.setattr(
        fork_cache, "save_file", lambda named, to: drafts.append(to) or save(named, to)
    )
    files, one = GroupTensorFiles(tmp_path, {}), group([3], [4], [5])
    for _ in range(2):
        files.write(one, [{"a": torch.ones(1)}, {}])
    assert len(set(drafts)) == 2
    assert [path.name for path in files.path(one).parent.iterdir()] == [files.path(one).name]


def test_the_names_of_files_never_change(tmp_path):
    one = dataclasses.replace(group([3, 4], [5, 6], [7]), prefix_scorers=("positive", None))
    fork = ["weights", 22, "float32", 20]
    forks = GroupTensorFiles(tmp_path, {"fork": fork})
    branches = GroupTensorFiles(
        tmp_path,
        {"fork": fork, "drawn": [0.05, 0, 24]},
        group_identity=lambda group: [group.prefix_scorers],
    )
    assert forks.path(one) == tmp_path / "1b" / "1bae1ae60ff63d0a06042b63b87007a1.safetensors"
    assert branches.path(one) == tmp_path / "20" / "2067c9cca5ca3895ec2d13d252066853.safetensors"
