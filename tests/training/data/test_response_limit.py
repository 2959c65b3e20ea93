"""The most tokens of an answer: by the data where none is given, within the context, and said aloud."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny

from pad_vllm.training.data.prepare_data import TrainedBase, prepare_groups
from pad_vllm.training.data.response_limit import ResponseLimit
from pad_vllm.training.settings import Settings


def chosen(lengths, given=None, max_prompt=100, context=None):
    return ResponseLimit.choose(lengths, given, max_prompt, context)


def test_without_a_limit_the_99th_percentile_of_the_lengths_is_it():
    limit = chosen(range(1, 1001))
    assert (limit.tokens, limit.cut, limit.answers, limit.longest) == (990, 10, 1000, 1000)
    assert chosen([5, 9, 7]).tokens == 9  # of few answers none is cut
    assert chosen([1, 1]).tokens == 2  # what training needs


def test_the_context_bounds_it_and_prompts_must_leave_room():
    limit = chosen([400, 500, 2000], max_prompt=256, context=1024)
    assert (limit.tokens, limit.cut) == (768, 1)
    assert "--max-prompt leaves of a context of 1024" in limit.lines(1)[0]
    with pytest.raises(ValueError, match="--max-prompt 256 leaves no room.*context of 256"):
        chosen([400], max_prompt=256, context=256)


def test_what_is_cut_is_said_with_how_many_are_left_out():
    limit = chosen([10, 20, 30, 40], given=25)
    first, warning = limit.lines(unlabelled=1)
    assert first.startswith(
        "answers are read up to 25 tokens (as asked for; the longest of 4 has 40"
    )
    assert warning.startswith("WARNING: 2 of 4 answers (50.0%) are longer and are cut.")
    assert "1 of them are left out" in warning
    assert warning.endswith("--max-response 40 cuts none")
    assert len(chosen([10], given=10).lines(0)) == 1


def written(tmp_path, count=60, **scores):
    """Records whose answers have 10 and 50 characters, a token each; scores: verbosity of each."""
    file = tmp_path / "data.jsonl"
    with file.open("w") as out:
        for n in range(count):
            texts = [f"{n:02} short", f"{n:02}" + " much longer" * 4]
            responses = [{"text": t, "scores": {"verbosity": len(t)}} for t in texts]
            out.write(json.dumps({"prompt": f"question {n}", "responses": responses}) + "\n")
    return Settings("base", (f"jsonl={file}",), "out", validation=0.2, held_out=0.2, **scores)


def test_by_default_no_answer_of_even_lengths_is_cut(tmp_path):
    prepared = prepare_groups(written(tmp_path), tiny.tokenizer(), TrainedBase(None, 512))
    assert prepared.settings.max_response == 51  # and its end
    assert prepared.report.response_limit.cut == 0
    assert [line for line in prepared.report.remarks() if "WARNING" in line] == []


def test_a_limit_that_leaves_no_pair_is_an_error_that_says_so(tmp_path):
    settings = written(tmp_path, max_response=20)
    with pytest.raises(
        ValueError, match="60 answers that were cut at --max-response 20"
    ) as refused:
        prepare_groups(settings, tiny.tokenizer())
    assert "60 records without two different scores of verbosity" in str(refused.value)


def test_a_part_without_prompts_says_what_was_left_out(tmp_path):
    file = tmp_path / "data.jsonl"
    settings = written(tmp_path)
    pair = '{"prompt": "x", "chosen": "a", "rejected": "b"}'
    lines = [*file.read_text().splitlines()[:2], pair]
    file.write_text("\n".join(lines) + "\n")
    settings = dataclasses.replace(settings, dimensions=("verbosity",))
    with pytest.raises(
        ValueError, match="of 2 in all .left out: 1 records without two different scores"
    ):
        prepare_groups(settings, tiny.tokenizer())


def test_nothing_left_names_its_reason(tmp_path):
    with pytest.raises(ValueError, match="60 prompts longer than --max-prompt 3"):
        prepare_groups(written(tmp_path, max_prompt=3), tiny.tokenizer())
