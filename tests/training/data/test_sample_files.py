"""A small file of every format, written by hand, with what becomes of each of its rows."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from pad_vllm.training.data.data_sources import read_source, scored_dimensions
from pad_vllm.training.data.data_spec import DataSpec

SAMPLES = Path(__file__).parent / "samples"
RATED = ("helpfulness", "honesty", "instruction_following", "truthfulness")

HELPSTEER2 = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
EMPTY, UNSCORED, EQUAL, FEW, BAD = (
    {reason: 1}
    for reason in (
        "empty answer",
        "no score",
        "equal answers",
        "fewer than two answers",
        "malformed",
    )
)

# (source, file, rows, records, dimensions, what was left out)
FILES = [
    ("jsonl", "records", 3, 2, ("kind", "brief"), EMPTY | EQUAL),
    ("jsonl", "pairs", 5, 2, ("preferred", "kind"), EQUAL | {"empty answer": 2}),
    ("jsonl", "trl_chats", 5, 2, ("preferred",), EQUAL | EMPTY | BAD),
    ("jsonl", "trl_implicit_prompt", 4, 2, ("preferred",), EQUAL | BAD),
    ("jsonl", "ultrafeedback_binarized", 4, 2, ("preferred",), UNSCORED | EQUAL),
    ("ultrafeedback-binarized", "ultrafeedback_binarized", 4, 2, ("preferred",), UNSCORED | EQUAL),
    ("jsonl", "ultrafeedback", 3, 2, RATED, EMPTY | UNSCORED | FEW),
    ("ultrafeedback", "ultrafeedback", 3, 2, RATED, EMPTY | UNSCORED | FEW),
    ("jsonl", "ratings", 4, 2, ("preferred",), EMPTY | UNSCORED | FEW | BAD),
    ("jsonl", "thumbs", 7, 2, ("preferred",), UNSCORED | EMPTY | FEW),
    ("helpsteer2", "helpsteer2", 6, 2, HELPSTEER2, UNSCORED | FEW),
    ("hh-rlhf", "hh_rlhf", 3, 1, ("harmless",), EMPTY | EQUAL),
    ("saferlhf", "saferlhf", 3, 2, ("better", "safer"), EMPTY),
    ("ric", "ric", 4, 1, ("harmless", "helpful", "humor"), UNSCORED | FEW),
]


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def as_parquet(file, folder):
    """The rows of a JSONL as Parquet, where every row has every column, null where it has none."""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    path = folder / f"{file.stem}.parquet"
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


@pytest.mark.parametrize(("source", "name", "rows", "records", "dimensions", "left_out"), FILES)
def test_every_row_of_a_sample_becomes_a_record_or_is_counted_by_its_reason(
    source, name, rows, records, dimensions, left_out
):
    found, report = read_source(DataSpec.parse(f"{source}={SAMPLES / name}.jsonl"))
    assert (report.read, report.records, dict(report.left_out)) == (rows, records, left_out)
    assert len(found) == records
    assert scored_dimensions(found) == dimensions


def test_every_sample_is_tested_and_every_format_has_one():
    assert {name for _, name, *_ in FILES} == {file.stem for file in SAMPLES.glob("*.jsonl")}


@pytest.mark.parametrize(
    "name", ["trl_chats", "trl_implicit_prompt", "ultrafeedback_binarized", "ultrafeedback"]
)
def test_a_parquet_file_gives_the_records_of_its_jsonl(name, tmp_path):
    file = SAMPLES / f"{name}.jsonl"
    lines, _ = read_source(DataSpec.parse(f"jsonl={file}"))
    columns, _ = read_source(DataSpec.parse(f"jsonl={as_parquet(file, tmp_path)}"))
    assert [(r.prompt, r.responses) for r in columns] == [(r.prompt, r.responses) for r in lines]


def responses_of(name, source="jsonl"):
    found, _ = read_source(DataSpec.parse(f"{source}={SAMPLES / name}.jsonl"))
    return [([m.role for m in r.prompt], [(a.text, a.scores) for a in r.responses]) for r in found]


def test_the_common_beginning_of_two_chats_is_the_prompt():
    stated, implicit = responses_of("trl_chats"), responses_of("trl_implicit_prompt")
    assert stated == implicit
    assert stated[1][0] == ["system", "user", "assistant", "user"]
    assert stated[0][1] == [
        ("Seven minutes in boiling water, then cold water.", {"preferred": 1}),
        ("Just boil it.", {"preferred": 0}),
    ]


def test_scores_of_pairs_are_read_and_ratings_keep_their_names():
    (prompt, (chosen, rejected)), *_ = responses_of("ultrafeedback_binarized")
    assert (prompt, chosen[1], rejected[1]) == (["user"], {"preferred": 8.5}, {"preferred": 3.0})
    (_, (best, worst)), *_ = responses_of("ultrafeedback")
    assert best[1] == dict(zip(RATED, (5, 5, 5, 4), strict=True))
    assert worst[1] == dict(zip(RATED[:3], (2, 4, 3), strict=True))  # N/A is unknown


def test_thumbs_up_and_down_to_one_prompt_are_one_record_wherever_they_stand():
    (_, first), (_, second) = responses_of("thumbs")
    assert [scores["preferred"] for _, scores in first] == [1, 0]
    assert [scores["preferred"] for _, scores in second] == [1, 0]


def test_columns_that_are_not_read_are_named():
    for name in ("pairs", "trl_chats", "thumbs", "ratings"):
        _, report = read_source(DataSpec.parse(f"jsonl={SAMPLES / name}.jsonl"))
        assert set(report.unread_columns) == {"id", "source", "user"}, name
