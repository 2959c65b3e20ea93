"""Records as groups: what is scored, cut, left out, split and put on one scale. No model runs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_vllm.evaluation.lexical_scorers import lexical_scores
from pad_vllm.text.prompt_digests import find_digested
from pad_vllm.training.data.data_report import DataReport
from pad_vllm.training.data.data_sources import MalformedRow, SourceReport
from pad_vllm.training.data.data_spec import repeats_per_epoch
from pad_vllm.training.data.group_builder import build_groups
from pad_vllm.training.data.preference_record import PreferenceRecord, unit_hash
from pad_vllm.training.data.prompt_groups import (
    PREFIX_LENGTHS,
    PromptGroup,
    divide_by_spread,
    score_spreads,
    split_by_key,
)
from pad_vllm.training.data.response_limit import ResponseLimit

LIMITS = {"max_prompt": 200, "max_response": 300}
TOKENIZER = tiny.tokenizer()
EOS = TOKENIZER.eos_token_id


def record(*responses, prompt="Hi", **extra):
    """Each response a text, or (text, scores)."""
    pairs = [(one, {}) if isinstance(one, str) else one for one in responses]
    listed = [{"text": text, "scores": scores} for text, scores in pairs]
    return PreferenceRecord.model_validate(
        {"prompt": prompt, "responses": listed, "source": "s", **extra}
    )


def loaded(*records, dimensions=("kind",), **limits):
    groups, counts_of = build_groups(records, TOKENIZER, dimensions, **{**LIMITS, **limits})
    return groups, counts_of["s"]


def scored(key, *scores, source="s"):
    """A group whose responses have these scores in every beginning and in one dimension."""
    rows = torch.tensor(scores).view(-1, 1, 1).expand(-1, len(PREFIX_LENGTHS) + 1, 1)
    return PromptGroup(key, source, [3], [[n] for n in range(len(scores))], rows, (None,), ())


def test_a_prompt_goes_through_the_chat_template_and_a_response_ends_with_eos():
    conversation = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]
    given_ids = {"text": "drawn", "token_ids": [7, 8, 9], "scores": {"kind": 0}}
    typed = {"text": "yes", "scores": {"kind": 1}}
    [group], _ = loaded(record(prompt=conversation, responses=[typed, given_ids]))
    assert TOKENIZER.decode(group.prompt_ids) == "<system>Be.<user>Hi<assistant>"
    assert group.conversation.messages() == conversation
    assert group.response_ids[0][-1] == EOS
    assert TOKENIZER.decode(group.response_ids[0][:-1]) == "yes"
    assert group.response_ids[1] == [7, 8, 9]
    assert (group.prompt_key, group.source, group.repeats_per_epoch) == ("hi", "s", 1)


def test_an_unknown_score_is_nan_and_not_zero():
    one = record(("a", {"kind": 1, "humor": 3}), ("b", {"kind": 0}), ("c", {}))
    [group], lengths = loaded(one, dimensions=("kind", "humor", "never"))
    assert group.scores.shape == (3, len(PREFIX_LENGTHS) + 1, 3)
    assert group.scores[:, -1, 0].tolist()[:2] == [1, 0]
    known = ~group.scores.isnan()
    assert known[:, -1].tolist() == [[True, True, False], [True, False, False], [False] * 3]
    assert (known == known[:, -1:]).all()
    assert lengths.pairs == {"kind": 1, "humor": 0, "never": 0}


def test_beginnings_are_scored_anew_where_a_scorer_made_the_score_and_can_judge_them():
    gloomy = "I hate this awful and bad thing. " + "But I love you, what a nice good day. " * 2
    texts = (gloomy, "Good. " * 20)
    names = ("positive", "brief", "kind", "warm")
    responses = [
        (t, {"positive": lexical_scores(t, ("positive",))[0], "brief": -n, "kind": n, "warm": n})
        for n, t in enumerate(texts)
    ]
    scorers = {"positive": "positive", "brief": "brief", "kind": "judge", "warm": "positive"}
    [group], _ = loaded(record(*responses, scorers=scorers), dimensions=names)
    assert [name is not None for name in group.prefix_scorers] == [True, False, False, True]
    assert group.prefix_scorers == ("positive", None, None, "positive")
    begun = [lexical_scores(gloomy[:cut], ("positive",))[0] for cut in PREFIX_LENGTHS]
    assert group.scores[0, :-1, 0].tolist() == pytest.approx(begun)
    assert group.scores[0, :-1, 3].tolist() == pytest.approx(begun)
    assert group.scores[0, 0, 0] < 0 < group.scores[0, -1, 0]
    for same in (1, 2):  # brief says nothing of unfinished text, and a judge is not asked again
        assert (group.scores[..., same] == group.scores[:, -1:, same]).all()
    assert group.scores[1, -1, 3] == 1  # the whole keeps the score that it came with


def test_a_beginning_longer_than_the_response_is_the_response():
    scorers = {"positive": "positive"}
    one = record(("Good day.", {"positive": 0.7}), ("Bad.", {"positive": -0.7}), scorers=scorers)
    [group], _ = loaded(one, dimensions=("positive",))
    assert group.scores[0].flatten().tolist() == pytest.approx([0.7] * (len(PREFIX_LENGTHS) + 1))


def test_a_response_that_was_cut_is_counted_and_has_no_score_but_that_of_what_is_left():
    long = "Good. " * 10 + "Awful, bad, hated. " * 10
    scorers = {"positive": "positive"}
    one = record(
        ("No.", {"positive": 0, "kind": 0}), (long, {"positive": -1, "kind": 1}), scorers=scorers
    )
    [group], lengths = loaded(one, dimensions=("positive", "kind"), max_response=60)
    assert lengths.cut_responses == 1
    assert TOKENIZER.decode(group.response_ids[1]) == long[:60]
    assert group.response_ids[0][-1] == EOS
    assert group.scores[1, -1, 0] == pytest.approx(lexical_scores(long[:60], ("positive",))[0])
    assert group.scores[1, :, 1].isnan().all()  # kind was said of the whole
    assert group.scores[0, -1, 1] == 0
    assert lengths.unlabelled_responses == 0


def test_a_cut_response_that_no_scorer_can_score_is_left_out_and_counted():
    rated = [("x" * 40, {"verbosity": 4}), ("x" * 12, {"verbosity": 1}), ("y", {"verbosity": 0})]
    [group], lengths = loaded(record(*rated), dimensions=("verbosity",), max_response=20)
    assert [TOKENIZER.decode(ids[:-1]) for ids in group.response_ids] == ["x" * 12, "y"]
    assert (lengths.cut_responses, lengths.unlabelled_responses) == (1, 1)


def test_two_answers_that_the_cut_made_one_text_are_never_a_pair_of_two_labels():
    rated = [("x" * 40, {"verbosity": 4}), ("x" * 30, {"verbosity": 1})]
    groups, lengths = loaded(record(*rated), dimensions=("verbosity",), max_response=20)
    assert not groups
    assert (lengths.cut_responses, lengths.duplicate_responses) == (2, 1)
    assert (lengths.unlabelled_responses, lengths.uninformative) == (1, 1)


def test_of_a_whole_response_and_a_cut_one_with_the_same_tokens_the_whole_one_keeps_its_score():
    drawn = [
        {"text": "abc", "token_ids": [7, 8, 9], "scores": {"kind": 1}},
        {"text": "ab", "token_ids": [7, 8], "scores": {"kind": 0}},
        {"text": "d", "token_ids": [5], "scores": {"kind": 1}},
    ]
    [group], lengths = loaded(record(responses=drawn), max_response=2)
    assert group.response_ids == [[7, 8], [5]]
    assert group.scores[:, -1, 0].tolist() == [0, 1]
    assert lengths.duplicate_responses == 1


def test_long_prompts_are_dropped_and_counted():
    fits, long = (record(("a", {"kind": 1}), ("b", {"kind": 0}), prompt=p) for p in ("x", "x" * 99))
    groups, lengths = loaded(fits, long, max_prompt=50)
    assert [group.prompt_key for group in groups] == ["x"]
    assert (lengths.groups, lengths.long_prompts) == (1, 1)


def test_responses_that_the_cut_made_the_same_are_one():
    texts = [("good day, yes", {"kind": 1}), ("good day, no", {"kind": 0}), ("c", {"kind": 0})]
    one = record(*texts, scorers={"kind": "positive"})
    [group], lengths = loaded(one, max_response=8)
    assert len(group.response_ids) == 2
    assert (lengths.duplicate_responses, lengths.cut_responses) == (1, 2)
    none, lengths = loaded(record(*texts[:2], scorers={"kind": "positive"}), max_response=8)
    assert not none
    assert lengths.uninformative == 1


def test_records_whose_responses_no_dimension_tells_apart_are_dropped_and_counted():
    tied = record(("a", {"kind": 1}), ("b", {"kind": 1}))
    unknown = record(("a", {"other": 1}), ("b", {"other": 0}))
    apart = record(("a", {"kind": 1}), ("b", {}))
    groups, lengths = loaded(tied, unknown, apart)
    assert not groups
    assert (lengths.groups, lengths.uninformative) == (0, 3)


def test_a_conversation_that_the_template_refuses_is_dropped_and_counted():
    strict = tiny.tokenizer()
    strict.chat_template = "{{ raise_exception('no system turn') }}"
    one = record(("a", {"kind": 1}), ("b", {"kind": 0}))
    groups, counts_of = build_groups([one], strict, ("kind",), **LIMITS)
    assert not groups
    assert counts_of["s"].refused_prompts == 1


def test_a_weight_above_one_repeats_a_group_without_copying_it():
    records = [record(("a", {"kind": 1}), ("b", {"kind": 0}), prompt=f"p{n}") for n in range(40)]
    groups, _ = build_groups(records, TOKENIZER, ("kind",), weight_of_source={"s": 2.5}, **LIMITS)
    assert [group.repeats_per_epoch for group in groups] == [
        repeats_per_epoch(2.5, f"p{n}") for n in range(40)
    ]
    assert {group.repeats_per_epoch for group in groups} == {2, 3}


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.text(max_size=9), max_size=60),
    st.floats(0, 0.49, allow_subnormal=False),
    st.floats(0, 0.49, allow_subnormal=False),
)
def test_no_prompt_is_in_two_parts_and_none_is_lost(keys, validation, held_out):
    groups = [scored(key, 0.0, 1.0) for key in keys]
    parts = split_by_key(groups, validation, held_out)
    names = [{group.prompt_key for group in part} for part in parts]
    assert sum(map(len, parts)) == len(groups)
    assert len(set(keys)) == sum(map(len, names))
    assert all(unit_hash(key) < held_out for key in names[2])
    again = split_by_key(list(reversed(groups)), validation, held_out)
    assert [{group.prompt_key for group in part} for part in again] == names


def test_shares_that_leave_nothing_to_train_on_are_refused():
    for shares in ((0.5, 0.5), (-0.1, 0.1), (0.1, -0.1)):
        with pytest.raises(ValueError, match="together below 1, are accepted"):
            split_by_key([], *shares)


def test_a_spread_is_the_usual_distance_from_the_prompts_mean_whatever_is_unknown():
    nan = torch.nan
    groups = [
        scored("a", 0.0, 2.0),  # 1 from the mean
        scored("b", 10.0, 16.0, nan),  # 3 from the mean
        scored("c", 7.0, nan),  # a lone score says nothing
        scored("d", 0.0, 0.5, source="other"),
        scored("e", 4.0, 4.0, source="tied"),
        scored("f", nan, nan, source="unknown"),
    ]
    found = score_spreads(groups)
    assert {source: one.shape for source, one in found.items()} == dict.fromkeys(
        ("s", "other", "tied", "unknown"), (len(PREFIX_LENGTHS) + 1, 1)
    )
    assert torch.allclose(found["s"], torch.tensor(5.0).sqrt())
    assert torch.allclose(found["other"], torch.tensor(0.25))
    assert (found["tied"] == 1).all()
    assert (found["unknown"] == 1).all()


def test_a_spread_is_each_beginnings_own():
    rows = torch.zeros(2, len(PREFIX_LENGTHS) + 1, 1)
    rows[1] = torch.arange(1.0, len(PREFIX_LENGTHS) + 2).view(-1, 1)
    found = score_spreads([dataclasses.replace(scored("a", 0.0, 0.0), scores=rows)])
    assert torch.allclose(found["s"], rows[1] / 2)


def test_scaled_scores_are_in_spreads_and_a_source_without_one_is_refused():
    groups = [scored("a", 0.0, 8.0), scored("b", 1.0, torch.nan)]
    found = divide_by_spread(groups, score_spreads(groups))
    assert found[0].scores[:, -1, 0].tolist() == [0, 2]
    assert found[1].scores[1].isnan().all()
    assert groups[0].scores[1, -1, 0] == 8
    with pytest.raises(ValueError, match="'new' has no spread; s have"):
        divide_by_spread([scored("c", 1.0, 2.0, source="new")], score_spreads(groups))


def test_the_report_is_json_and_a_table_with_a_row_a_source():
    one = record(("a", {"kind": 1}), ("b", {"kind": 0}), ("c", {"kind": 0}))
    groups, lengths = build_groups([one], TOKENIZER, ("kind", "never"), **LIMITS)
    read = SourceReport("s", read=4, records=1, duplicate_records=2)
    read.add_malformed(MalformedRow("mine.jsonl", 3, "not JSON"))
    empty = SourceReport("empty")
    limit = ResponseLimit(300, "as asked for", 3, 0, 2)
    scorers = {"kind": ["afinn"], "never": []}
    report = DataReport.from_parts([read, empty], lengths, (groups, [], []), limit, scorers)
    assert report.as_dict()["scorers"] == scorers
    found = find_digested(report.as_dict()["trained_prompts"], [groups[0].conversation])
    assert found == [groups[0].conversation]
    assert json.loads(json.dumps(dataclasses.asdict(report)))["prompts"] == {
        "train": 1,
        "validation": 0,
        "held out": 0,
    }
    head, *rows = report.table_rows()
    assert [row[0] for row in rows] == ["s", "empty"]
    found = dict(zip(head, rows[0], strict=True))
    assert (found["read"], found["malformed"], found["duplicate"]) == ("4", "1", "2")
    assert (found["groups"], found["kind"], found["never"]) == ("1", "2", "0")
    assert list(report.malformed_lines()) == ["mine.jsonl:3: not JSON"]
    first, *_ = report.remarks()
    assert first == "s: left out: malformed 1"
    assert report.as_dict()["sources"][0]["left_out"] == {"malformed": 1}
    assert report.as_dict()["response_limit"]["tokens"] == 300
