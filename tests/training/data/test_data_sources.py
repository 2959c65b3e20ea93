"""Published schemas and users' own files as records, and what a report says of malformed rows."""

from __future__ import annotations

import gzip
import hashlib
import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_vllm.text.conversation import prompt_key
from pad_vllm.training.data import data_sources
from pad_vllm.training.data.data_sources import (
    MalformedRow,
    read_source,
    require_records,
    scored_dimensions,
)
from pad_vllm.training.data.data_spec import DataSpec, repeats_per_epoch, weight_by_label
from pad_vllm.training.data.preference_record import unit_hash
from pad_vllm.training.data.published_dataset_columns import SOURCES

HELPSTEER2 = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(data_sources, "dataset_revision", lambda name: None)


def lines(path, rows):
    """A JSONL file, gzipped where its name says so; strings are written as they are."""
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.write(text)
    return path


def records(text, **options):
    return read_source(DataSpec.parse(text), **options)


def own(prompt="Hi", texts=("yes", "no"), **extra):
    responses = [{"text": text, "scores": {"kind": n}} for n, text in enumerate(texts)]
    return {"prompt": prompt, "responses": responses, **extra}


def content_of(record):
    return [(m.role, m.content) for m in record.prompt], [
        (r.text, r.scores) for r in record.responses
    ]


def helpsteer2(prompt, response, *scores):
    return {"prompt": prompt, "response": response, **dict(zip(HELPSTEER2, scores, strict=True))}


def test_two_helpsteer2_rows_with_one_prompt_are_one_record(tmp_path):
    rows = [
        helpsteer2("c#", "A language.", 3, 4, 4, 2, 1),
        helpsteer2("c#", "A note.", 1, 0, 4, 0, 0),
        helpsteer2("Why?", "Because.", 3, 3, 3, 3, 3),
        helpsteer2("Why?", "No idea.", 0, 0, 0, 0, 0),
    ]
    found, report = records(f"helpsteer2={lines(tmp_path / 'train.jsonl.gz', rows)}")
    prompt, responses = content_of(found[0])
    assert prompt == [("user", "c#")]
    assert responses[0] == ("A language.", dict(zip(HELPSTEER2, (3, 4, 4, 2, 1), strict=True)))
    assert [r.text for r in found[1].responses] == ["Because.", "No idea."]
    assert (report.read, report.records, report.malformed) == (4, 2, 0)


def test_helpsteer2_turns_are_split_at_their_markers(tmp_path):
    text = "Hello\n<extra_id_1>Assistant\nGood day.\n<extra_id_1>User\nHelp me"
    rows = [helpsteer2(text, answer, 1, 1, 1, 1, 1) for answer in ("a", "b")]
    found, _ = records(f"helpsteer2={lines(tmp_path / 'h.jsonl', rows)}")
    assert content_of(found[0])[0] == [
        ("user", "Hello"),
        ("assistant", "Good day."),
        ("user", "Help me"),
    ]


def test_a_limit_counts_records_and_keeps_their_rows_together(tmp_path):
    rows = [helpsteer2(str(n // 2), str(n), 1, 1, 1, 1, 1) for n in range(20)]
    found, report = records(f"helpsteer2={lines(tmp_path / 'h.jsonl', rows)}", limit=3)
    assert [[r.text for r in one.responses] for one in found] == [
        ["0", "1"],
        ["2", "3"],
        ["4", "5"],
    ]
    assert report.records == 3
    assert report.read < 20


def ric(prompt, response, *scores):
    numbered = {f"score{n}": score for n, score in enumerate(scores, start=1)}
    return {"prompt": f"\n\nHuman: {prompt} \n\nAssistant:", "response": response, **numbered}


def test_ric_as_its_script_saves_it_is_joined_over_the_whole_file(tmp_path):
    rows = [
        ric("a", "yes", 0.5, -1.0, 2.0),
        ric("b", "well", 1.0, 1.0, 1.0),
        ric("a", "no", 0, 1, 0),
    ]
    datasets.Dataset.from_list(rows).with_format("torch").save_to_disk(tmp_path / "ric.hf")
    found, report = records(f"ric={tmp_path / 'ric.hf'}")
    prompt, responses = content_of(found[0])
    assert prompt == [("user", "a")]
    assert responses[0] == ("yes", {"harmless": 0.5, "helpful": -1.0, "humor": 2.0})
    assert responses[1][0] == "no"
    assert (report.records, report.too_few_responses) == (1, 1)


def test_ric_scores_are_named_by_the_spec_or_by_their_columns(tmp_path):
    numbered = lines(tmp_path / "n.jsonl", [ric("a", "yes", 1, 2), ric("a", "no", 3, 4)])
    found, _ = records(f"ric:humor,helpful={numbered}")
    assert found[0].responses[0].scores == {"humor": 1, "helpful": 2}
    named = [
        {"prompt": "a", "response": r, "humor": n, "helpful": None} for n, r in enumerate("xy")
    ]
    found, _ = records(f"ric={lines(tmp_path / 'c.jsonl', named)}")
    assert content_of(found[0]) == ([("user", "a")], [("x", {"humor": 0}), ("y", {"humor": 1})])


def test_ric_of_two_rewards_leaves_the_third_unknown(tmp_path):
    file = lines(tmp_path / "n.jsonl", [ric("a", "yes", 1, 2), ric("a", "no", 3, 4)])
    found, _ = records(f"ric={file}")
    assert found[0].responses[1].scores == {"harmless": 3, "helpful": 4}


def safe(better=0, safer=1, **changed):
    return {
        "prompt": "How?",
        "response_0": "Like this.",
        "response_1": "Better not.",
        "is_response_0_safe": False,
        "better_response_id": better,
        "safer_response_id": safer,
        **changed,
    }


def test_saferlhf_ids_become_scores_of_one_and_zero(tmp_path):
    file = tmp_path / "train.parquet"
    datasets.Dataset.from_list([safe()]).to_parquet(file)
    found, _ = records(f"saferlhf={file}")
    assert content_of(found[0])[1] == [
        ("Like this.", {"better": 1.0, "safer": 0.0}),
        ("Better not.", {"better": 0.0, "safer": 1.0}),
    ]


def hh(chosen, rejected, before="\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Again"):
    return {
        name: f"{before}\n\nAssistant: {t}"
        for name, t in zip(("chosen", "rejected"), (chosen, rejected), strict=True)
    }


def test_hh_rlhf_parts_at_the_last_assistant_turn(tmp_path):
    file = lines(tmp_path / "train.jsonl.gz", [hh("Gladly.", "Go away.")])
    found, _ = records(f"hh-rlhf={file}")
    assert content_of(found[0]) == (
        [("user", "Hi"), ("assistant", "Hello"), ("user", "Again")],
        [("Gladly.", {"harmless": 1.0}), ("Go away.", {"harmless": 0.0})],
    )
    found, _ = records(f"hh-rlhf:helpful={file}")
    assert found[0].responses[0].scores == {"helpful": 1.0}


def test_users_own_files_hold_records_or_pairs(tmp_path):
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rows = [
        own(scorers={"kind": "positive"}, source="elsewhere"),
        {"prompt": conversation, "chosen": "good", "rejected": "bad"},
        {"prompt": "x", "chosen": "good", "rejected": "bad", "dimension": "polite"},
        {
            "prompt": "y",
            "responses": [{"text": "a", "token_ids": [5]}, {"text": "b", "token_ids": [6]}],
        },
    ]
    text = f"jsonl={lines(tmp_path / 'mine.jsonl', rows)}"
    found, report = records(text, strict=True)
    assert report.records == 4
    assert [r.source for r in found] == [text] * 4
    assert found[0].scorers == {"kind": "positive"}
    assert content_of(found[1])[0][0] == ("system", "Be brief.")
    assert content_of(found[1])[1] == [("good", {"preferred": 1}), ("bad", {"preferred": 0})]
    assert found[3].responses[0].token_ids == [5]
    assert scored_dimensions(found) == ("kind", "preferred", "polite")
    named, _ = records(f"jsonl:kind={tmp_path / 'mine.jsonl'}")
    assert named[1].responses[0].scores == {"kind": 1}


def test_a_null_in_parquet_is_unknown_and_not_zero(tmp_path):
    responses = [{"text": "a", "scores": {"x": 1.0}}, {"text": "b", "scores": {"y": 2.0}}]
    file = tmp_path / "mine.parquet"
    datasets.Dataset.from_list([{"prompt": "p", "responses": responses}]).to_parquet(file)
    found, _ = records(f"jsonl={file}")
    assert [r.scores for r in found[0].responses] == [{"x": 1.0}, {"y": 2.0}]


def test_a_json_array_is_read_as_its_items(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([own("a"), {"prompt": "b"}, own("c")], indent=1))
    found, report = records(f"jsonl={file}")
    assert [prompt_key(r.prompt) for r in found] == ["a", "c"]
    assert report.first_malformed[0].line == 2


BAD = [
    ("jsonl", '{"prompt": "x", "resp', "not JSON"),
    ("jsonl", "[1]", "not a JSON object"),
    ("jsonl", {"prompt": "x", "responses": [{"text": "alone"}]}, "responses: List should have"),
    ("jsonl", {"text": "x", "score": 1}, "the columns score, text are those of no format"),
    ("jsonl", {**own(), "responses": [{"text": t, "surprise": 1} for t in "ab"]}, "surprise: Extra inputs"),
    ("jsonl", own([{"role": "assistant", "content": "x"}]), "must end with a user turn"),
    ("jsonl", {"prompt": "x", "chosen": "a"}, "column 'rejected' is missing"),
    ("jsonl", {"chosen": "a", "rejected": "b"}, "column 'prompt' is missing"),
    ("jsonl", {"prompt": "x", "completion": "a", "label": "good"}, "label is 'good'; true and false"),
    ("jsonl", {**own(), "responses": [{"text": t, "scores": {"a b": 1}} for t in "ab"]}, "dimension 'a b'"),
    ("jsonl", '{"prompt": "x", "responses": [{"text": "a", "scores": {"k": NaN}}, {"text": "b"}]}', "finite"),
    ("helpsteer2", {"prompt": "x", "response": "y"}, "column 'helpfulness' is missing"),
    ("helpsteer2", helpsteer2("x", None, 1, 1, 1, 1, 1), "response is None; text is needed"),
    ("helpsteer2", helpsteer2("x\n<extra_id_1>User\ny", "z", 1, 1, 1, 1, 1), "turns must alternate"),
    ("ric", {"prompt": "x", "response": "y"}, "no score"),
    ("saferlhf", safe(better=2), "better_response_id is 2; 0 and 1 are accepted"),
    ("saferlhf", safe(safer=-1), "safer_response_id is -1"),
    ("hh-rlhf", {"chosen": "Hi", "rejected": "Hi"}, "turns must alternate"),
    ("hh-rlhf", {**hh("a", "b"), "rejected": "\n\nHuman: Other\n\nAssistant: b"}, "must be the same"),
    ("hh-rlhf", dict.fromkeys(("chosen", "rejected"), "\n\nHuman: Hi"), "must be the same"),
]  # fmt: skip
GOOD = {
    "jsonl": [own()],
    "helpsteer2": [helpsteer2("x", "y", 1, 1, 1, 1, 1), helpsteer2("x", "z", 1, 1, 1, 1, 1)],
    "ric": [ric("x", "y", 1), ric("x", "z", 2)],
    "saferlhf": [safe()],
    "hh-rlhf": [hh("a", "b")],
    "ultrafeedback": [{"instruction": "x", "completions": ["y", "z"], "ratings": [1, 2]}],
    "ultrafeedback-binarized": [{"prompt": "x", "chosen": "y", "rejected": "z"}],
}


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_a_malformed_row_is_counted_with_its_line_and_refused_under_strict(
    name, row, reason, tmp_path
):
    file = lines(tmp_path / "rows.jsonl", ["", *GOOD[name], row, ""])
    line = 2 + len(GOOD[name])
    found, report = records(f"{name}={file}")
    assert len(found) == 1
    assert (report.read, report.malformed) == (1 + len(GOOD[name]), 1)
    [skipped] = report.first_malformed
    assert (skipped.file, skipped.line) == (str(file), line)
    assert reason in skipped.reason
    with pytest.raises(ValueError, match="leave strict out") as refused:
        records(f"{name}={file}", strict=True)
    assert f"rows.jsonl, line {line}: " in str(refused.value)
    assert reason in str(refused.value)


def test_bytes_that_are_no_utf8_make_their_line_malformed_and_no_other(tmp_path):
    file = tmp_path / "mine.jsonl"
    good = json.dumps(own("ünïcode\u2028", ("a", "b")), ensure_ascii=False).encode()
    file.write_bytes(
        b"\xef\xbb\xbf" + good + b'\r\n{"prompt": "\xff", "chosen": "a", "rejected": "b"}\n'
    )
    found, report = records(f"jsonl={file}")
    assert content_of(found[0])[0] == [("user", "ünïcode\u2028")]
    assert [s.line for s in report.first_malformed] == [2]


def test_the_first_five_malformed_rows_are_kept_and_all_are_counted(tmp_path):
    file = lines(tmp_path / "mine.jsonl", ["{"] * 8)
    found, report = records(f"jsonl={file}")
    assert not found
    assert report.malformed == 8
    assert report.first_malformed[-1] == MalformedRow(
        str(file), 5, report.first_malformed[0].reason
    )


def test_duplicates_are_dropped_and_same_texts_are_merged(tmp_path):
    rows = [
        own("a", ("x", "y")),
        own("a", ("y", "x")),  # the same texts in another order
        own("a", ("x", "z")),
        own("b", ("x", "x", "y")),  # scores 0, 1, 2
        own("c", ("x", "x")),
        own([{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], ("x", "y")),
    ]
    found, report = records(f"jsonl={lines(tmp_path / 'mine.jsonl', rows)}")
    assert [prompt_key(r.prompt) for r in found] == ["a", "a", "b", "a"]
    assert content_of(found[2])[1] == [("x", {"kind": 0.5}), ("y", {"kind": 2})]
    assert (report.duplicate_records, report.merged_responses, report.too_few_responses) == (
        1,
        2,
        1,
    )


def test_a_weight_below_one_keeps_the_same_part_every_time(tmp_path):
    file = lines(tmp_path / "mine.jsonl", [own(f"question {n}") for n in range(200)])
    first, report = records(f"jsonl={file}@0.5")
    again, _ = records(f"jsonl={file}@0.5")
    assert first == again
    assert 70 < len(first) < 130
    assert report.dropped_by_weight + report.records == 200
    held_out = sum(unit_hash(prompt_key(record.prompt)) < 0.5 for record in first) / len(first)
    assert 0.35 < held_out < 0.65  # independent of the split


@settings(deadline=None, max_examples=50)
@given(st.text(), st.floats(0.01, 9))
def test_repeats_are_the_weight_rounded_to_one_side(key, weight):
    assert repeats_per_epoch(weight, key) in {int(weight), int(weight) + 1}
    assert repeats_per_epoch(float(int(weight)), key) == int(weight)
    assert repeats_per_epoch(weight, key) <= repeats_per_epoch(weight + 0.3, key)


SPECS = [
    ("helpsteer2", "helpsteer2", HELPSTEER2, None, 1),
    ("helpsteer2@2", "helpsteer2", HELPSTEER2, None, 2),
    ("hh-rlhf:helpful@0.5", "hh-rlhf:helpful", ("helpful",), None, 0.5),
    ("hh-rlhf:harmless=hh.jsonl.gz@0.5", "hh-rlhf=hh.jsonl.gz", ("harmless",), "hh.jsonl.gz", 0.5),
    ("jsonl=a=b@c.jsonl", "jsonl=a=b@c.jsonl", ("preferred",), "a=b@c.jsonl", 1),
    ("ric:helpful,humor=d", "ric:helpful,humor=d", ("helpful", "humor"), "d", 1),
]


@pytest.mark.parametrize(("text", "label", "dimensions", "path", "weight"), SPECS)
def test_a_spec_is_name_dimension_path_and_weight(text, label, dimensions, path, weight):
    spec = DataSpec.parse(text)
    assert (spec.label, spec.dimensions, spec.weight) == (label, dimensions, weight)
    assert (spec.path and str(spec.path)) == path
    assert DataSpec.parse(spec.label) == DataSpec(spec.name, dimensions, spec.path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("helpsteer", "'helpsteer'.*Accepted: helpsteer2, ric.*Did you mean 'helpsteer2'"),
        ("", "no source is called ''"),
        ("jsonl", "write jsonl=PATH"),
        ("jsonl=", "write jsonl=PATH"),
        ("ric", "write ric=PATH"),
        ("helpsteer2@many", "weight 'many' must be a finite number above 0"),
        ("helpsteer2@", "weight '' must be"),
        ("jsonl=x.jsonl@0", "weight '0' must be"),
        ("jsonl=x.jsonl@inf", "weight 'inf' must be"),
        ("helpsteer2:funny", "names its dimensions itself.*leave :funny out"),
        ("hh-rlhf:a,b", "'a,b' is not accepted after hh-rlhf:, at most 1"),
        ("hh-rlhf:", "'' is not accepted"),
        ("ric:a,a=x", "different"),
        ("hh-rlhf:a b", "letters, digits"),
        (
            "hh-rlhf:harmlessness",
            "no rows of 'harmlessness'. Accepted: harmless, helpful.*Did you mean 'harmless'",
        ),
    ],
)
def test_a_wrong_spec_is_refused_with_what_is_accepted(text, named):
    with pytest.raises(ValueError, match=named):
        DataSpec.parse(text)


def test_the_same_data_twice_is_refused_and_weights_go_by_label():
    specs = [DataSpec.parse("helpsteer2@2"), DataSpec.parse("jsonl=a.jsonl")]
    assert weight_by_label(specs) == {"helpsteer2": 2, "jsonl=a.jsonl": 1}
    with pytest.raises(ValueError, match="given twice"):
        weight_by_label([*specs, DataSpec.parse("helpsteer2@0.5")])


def test_of_a_folder_the_train_files_are_read_in_order(tmp_path):
    folder = tmp_path / "hh [snapshot]"
    for name in ("harmless-base", "helpful-base"):
        (folder / name).mkdir(parents=True)
        lines(folder / name / "train.jsonl.gz", [hh(name, "b")])
        lines(folder / name / "test.jsonl.gz", [hh("test", "b")])
    found, _ = records(f"hh-rlhf:helpful={folder}")
    assert [r.responses[0].text for r in found] == ["helpful-base"]
    found, _ = records(f"hh-rlhf:kind={folder / 'helpful-base'}")
    assert [r.responses[0].scores for r in found] == [{"kind": 1}]
    with pytest.raises(ValueError, match="no rows of 'kind'. Accepted: harmless, helpful"):
        records(f"hh-rlhf:kind={folder}")


def test_paths_that_hold_no_data_are_refused_by_name(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "missing.jsonl"):
        with pytest.raises(ValueError, match="no file or folder of .jsonl, ") as refused:
            records(f"jsonl={path}")
        assert str(path) in str(refused.value)
    for broken in ("x.parquet", "x.jsonl.gz", "x.arrow"):
        (tmp_path / broken).write_bytes(b"\x1f\x8b\x08broken")
        with pytest.raises(ValueError, match=f"{broken}.*could not be read"):
            records(f"jsonl={tmp_path / broken}")
    (tmp_path / "empty.jsonl").touch()
    assert records(f"jsonl={tmp_path / 'empty.jsonl'}")[1].read == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("helpsteer2", ("nvidia/HelpSteer2", None)),
        ("saferlhf", ("PKU-Alignment/PKU-SafeRLHF", None)),
        ("hh-rlhf", ("Anthropic/hh-rlhf", "harmless-base")),
        ("hh-rlhf:helpful", ("Anthropic/hh-rlhf", "helpful-base")),
        ("ultrafeedback", ("openbmb/UltraFeedback", None)),
    ],
)
def test_without_a_path_the_hub_is_asked_for_the_train_split(text, expected, monkeypatch):
    def load(hub, *, data_dir, split, streaming):
        assert (hub, data_dir) == expected
        assert (split, streaming) == ("train", True)
        return iter([{"prompt": "broken"}, *GOOD[text.partition(":")[0]]])

    monkeypatch.setattr(datasets, "load_dataset", load)
    found, report = records(text)
    assert found[0].source == text
    assert report.first_malformed[0].file == expected[0]
    assert report.first_malformed[0].line == 1


def test_a_source_says_what_it_was_read_from(tmp_path, monkeypatch):
    file = lines(tmp_path / "mine.jsonl", [own()])
    _, report = records(f"jsonl={file}")
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    assert report.digests == {str(file): f"sha256:{content}"}
    rows, asked = GOOD["saferlhf"], []

    def load(hub, **options):
        asked.append(options["revision"])
        return iter(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(data_sources, "dataset_revision", lambda name: "0123abcd")
    _, first = records("saferlhf")
    assert (first.revision, asked) == ("0123abcd", ["0123abcd"])
    assert records("saferlhf")[1].digests == first.digests
    rows = [safe(better=1)]
    assert records("saferlhf")[1].digests != first.digests


def test_a_hub_out_of_reach_is_an_error_that_names_the_way_out(monkeypatch):
    def load(*_, **__):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(OSError, match="HelpSteer2 could not be opened.*helpsteer2=PATH"):
        records("helpsteer2")


def test_of_a_file_that_is_refused_the_error_says_what_was_expected_and_what_was_found(tmp_path):
    file = lines(tmp_path / "chats.jsonl", [{"messages": [], "id": n} for n in range(7)])
    spec = DataSpec.parse(f"jsonl={file}")
    found, report = read_source(spec)
    assert not found
    with pytest.raises(ValueError, match="none of its 7 rows is a record") as refused:
        require_records([report], [spec])
    _, expected, was, left_out, *first = str(refused.value).split("\n")
    assert expected.startswith('expected: {"prompt", "responses"')
    assert was == "found: columns messages, id"
    assert left_out == "left out: malformed 7"
    assert first[0] == f"{file}:1: the columns id, messages are those of no format"
    assert len(first) == 5


def test_an_empty_file_and_one_of_equal_answers_are_refused_with_the_reason(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    tied = lines(tmp_path / "tied.jsonl", [{"prompt": "x", "chosen": "a", "rejected": "a"}] * 3)
    for file, reason in ((empty, "found: nothing"), (tied, "left out: equal answers 3")):
        spec = DataSpec.parse(f"jsonl={file}")
        with pytest.raises(ValueError, match=reason):
            require_records([read_source(spec)[1]], [spec])


def test_every_source_with_a_hub_name_has_dimensions_and_a_parser():
    assert set(SOURCES) == set(GOOD)
    assert all(source.dimensions for source in SOURCES.values())
