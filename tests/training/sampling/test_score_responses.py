"""Scores are added once a record, in order, whatever interrupts it; nothing is written over."""

from __future__ import annotations

import json

import pytest

from pad_vllm.evaluation.lexical_scorers import LEXICAL_SCORERS
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.preference_record import PreferenceRecord
from pad_vllm.training.sampling import score_responses
from pad_vllm.training.sampling.score_responses import score_file

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "And \u2028 now?"},
]


@pytest.fixture
def source(tmp_path):
    """Seven records, two of them with more than their responses' texts."""
    prompts = ["One?", CHAT, "Three?", "Four?", "Five?", "Six?", "Seven?"]
    lines = [
        {
            "prompt": p,
            "responses": [{"text": "I love it."}, {"text": f"No {i} \u2028", "token_ids": [i]}],
        }
        for i, p in enumerate(prompts)
    ]
    lines[2]["source"] = "mine"
    lines[2]["scorers"] = {"old": "simple"}
    lines[2]["responses"][0]["scores"] = {"old": 1.0}
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "deeper" / "scored.jsonl"


@pytest.fixture
def calls(monkeypatch):
    """The prompts of each call of the scorer `flaky=...`, which has no score for texts that begin with No."""
    prompts_of_calls = []

    class Flaky:
        name, whole = "classifier:flaky", False

        def __call__(self, prompts, texts):
            prompts_of_calls.append(prompts)
            return [
                None if t.startswith("No 3") else float("nan") if t.startswith("No") else 1.0
                for t in texts
            ]

    real = score_responses.parse_scorer
    fake = lambda spec, **kw: ("flaky", Flaky()) if spec == "flaky" else real(spec, **kw)  # noqa: E731
    monkeypatch.setattr(score_responses, "parse_scorer", fake)
    return prompts_of_calls


def records(path):
    return list(jsonl.read_lines(path, PreferenceRecord.model_validate_json))


def test_every_response_gets_a_score_a_dimension_and_the_record_its_scorers(source, out):
    counts = score_file(source, out, ["positive", "short=brief"], batch_size=3)

    assert (counts.scored, counts.already_done, dict(counts.without_score)) == (7, 0, {})
    for unscored, scored in zip(records(source), records(out), strict=True):
        assert scored.prompt == unscored.prompt
        assert scored.source == unscored.source
        assert scored.scorers == {**unscored.scorers, "positive": "positive", "short": "brief"}
        for before, after in zip(unscored.responses, scored.responses, strict=True):
            values = {
                "positive": LEXICAL_SCORERS["positive"](after.text),
                "short": LEXICAL_SCORERS["brief"](after.text),
            }
            assert after.scores == {**before.scores, **values}
            assert (after.text, after.token_ids) == (before.text, before.token_ids)


@pytest.mark.parametrize("cut", [0, 1, 30, 200, 450, -1, -2])
def test_a_run_cut_anywhere_ends_as_if_it_had_not_been(source, out, cut):
    score_file(source, out, ["positive"])
    whole = out.read_bytes()
    out.write_bytes(whole[:cut])
    lines = whole[:cut].count(b"\n") + (cut == -1)  # only the newline is missing: not torn

    assert score_file(source, out, ["positive"]).already_done == lines
    assert out.read_bytes() == whole


def test_a_second_run_has_nothing_to_do(source, out, calls):
    score_file(source, out, ["flaky"])
    calls.clear()

    counts = score_file(source, out, ["flaky"])
    assert (counts.scored, counts.already_done, calls) == (0, 7, [])


def test_an_unknown_score_is_left_out_and_counted(source, out, calls):
    counts = score_file(source, out, ["flaky"], batch_size=64)

    assert counts.without_score == {"flaky": 7}
    assert records(out)[0].responses[0].scores == {"flaky": 1}
    assert records(out)[3].responses[1].scores == {}


def test_a_scorer_sees_lone_turns_bare_and_conversations_with_their_roles(source, out, calls):
    score_file(source, out, ["flaky"])

    assert [prompt.as_text() for prompt in calls[0][:3]] == [
        "One?",
        "One?",
        "system: Be kind.\n\nuser: And \u2028 now?",
    ]


def test_an_output_of_other_scorers_is_refused_with_both_named(source, out):
    score_file(source, out, ["positive"])

    with pytest.raises(
        ValueError, match="scorers positive=positive, now.*brief=brief.*another --out"
    ):
        score_file(source, out, ["brief"])


def test_an_output_of_another_source_is_refused(source, out, tmp_path):
    score_file(source, out, ["positive"])
    lines = source.read_text("utf-8").split("\n")
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(lines[1:]), "utf-8")
    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("\n".join(lines[:3]) + "\n", "utf-8")

    with pytest.raises(ValueError, match="record 1 of .* is not that of"):
        score_file(other, out, ["positive"])
    with pytest.raises(ValueError, match="record 4 of .* is not that of"):
        score_file(shorter, out, ["positive"])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["old=positive"], "scores of old already.*old2=positive"),
        (["positive", "positive=brief"], "positive has two scorers"),
        ([], "no scorer is named"),
        (["kindness"], "'kindness' is not known"),
    ],
)
def test_scorers_that_cannot_be_are_refused(source, out, specs, message):
    with pytest.raises(ValueError, match=message):
        score_file(source, out, specs)


def test_a_source_is_never_its_own_output_and_must_be_there(source, out):
    with pytest.raises(ValueError, match="the source itself"):
        score_file(source, source, ["positive"])
    with pytest.raises(ValueError, match="not there.*pad-vllm sample"):
        score_file(out, out, ["positive"])


def test_a_line_that_is_no_record_is_named(source, out):
    source.write_text(source.read_text("utf-8") + '{"prompt": "x"}\n', "utf-8")

    with pytest.raises(ValueError, match=r"samples.jsonl, line 8: responses: Field required"):
        score_file(source, out, ["positive"])
