"""Method scores learns from the base's own draw: who drew the answers, and at which temperature."""

from __future__ import annotations

import pytest

from pad_vllm.training.data.drawn_answers import drawn_temperature
from pad_vllm.training.data.preference_record import PreferenceRecord

OURS, THEIRS = ("sha256:" + digit * 64 for digit in "ab")


def record(fingerprint=OURS, temperature=0.8, *, says=True):
    line = {"prompt": "Hi", "responses": [{"text": "a"}, {"text": "b"}]}
    drawn = {"base": "a-model", "fingerprint": fingerprint, "temperature": temperature}
    drawn |= {"top_k": 20, "max_tokens": 64, "seed": 0}
    return PreferenceRecord.model_validate({**line, **({"drawn_by": drawn} if says else {})})


def test_the_temperature_is_that_of_the_draw_and_not_the_recipes():
    temperature, remarks = drawn_temperature([record(temperature=1.0)] * 3, OURS, 0.8)
    assert temperature == 1.0
    assert remarks == ["temperature 1, at which the answers were drawn"]
    assert drawn_temperature([record()], OURS, 0.8) == (0.8, [])


def test_answers_of_another_model_are_refused_with_the_ways_out():
    with pytest.raises(
        ValueError, match="answers of 1 of 2 records were drawn by another"
    ) as refused:
        drawn_temperature([record(), record(THEIRS)], OURS, 0.8)
    for said in ("a-model", THEIRS, OURS, "pad-vllm sample", "--teacher pairs", "`drawn_by`"):
        assert said in str(refused.value)


def test_answers_of_two_temperatures_are_refused():
    with pytest.raises(ValueError, match=r"temperatures 0\.5, 0\.8; --teacher scores accepts one"):
        drawn_temperature([record(), record(temperature=0.5)], OURS, 0.8)


def test_records_that_do_not_say_are_accepted_with_a_warning():
    temperature, remarks = drawn_temperature([record(says=False)] * 2, OURS, 0.7)
    assert temperature == 0.7
    assert remarks[0].startswith("WARNING: 2 of 2 records do not say which weights drew")
    assert "0.7 is assumed (--recipe temperature=...)" in remarks[1]
    temperature, remarks = drawn_temperature([record(None, 1.0), record(says=False)], OURS, 1.0)
    assert temperature == 1.0
    (warning,) = remarks
    assert warning.startswith("WARNING: 2 of 2 records do not say which weights drew their answers")


def test_a_base_without_a_fingerprint_is_not_compared():
    assert drawn_temperature([record(THEIRS)], None, 0.8) == (0.8, [])
