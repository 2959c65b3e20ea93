"""Answers are drawn once: a batch is known by what decides its answers."""

from __future__ import annotations

import dataclasses

import tiny

from benchmarks.common import answer_cache
from pad_vllm.steering.comparison_conditions import Condition, unguided_condition
from pad_vllm.steering.guided_answers import AnswerBatch, DecodingSettings
from pad_vllm.text.conversation import Conversation


def test_answers_are_read_by_the_batchs_hash_and_a_torn_line_is_drawn_again(
    scripted_engine, tmp_path
):
    cache = answer_cache.AnswerCache(tmp_path / "some" / "answers.jsonl")
    base = str(scripted_engine.base)
    batch = AnswerBatch(
        base,
        str(scripted_engine.adapter),
        [Conversation.model_validate("Hi")],
        [unguided_condition()],
        [DecodingSettings()],
    )
    answers = cache.draw(batch)
    copy = tiny.checkpoint("llama", tmp_path / "copy")
    assert cache.draw(dataclasses.replace(batch, base=str(copy))) == answers
    assert len(scripted_engine.batches) == 1
    more = Condition("+warm", {"warm": 1.0}, 1.0, request_arguments={"pad_min_p": 0.3})
    assert more.extra_args()["pad_min_p"] == 0.3
    cache.draw(dataclasses.replace(batch, conditions=[more]))
    assert len(scripted_engine.batches) == 2
    cache.path.write_text(cache.path.read_text()[:-5])
    cache.draw(dataclasses.replace(batch, conditions=[more]))
    cache.draw(dataclasses.replace(batch, conditions=[more]))
    assert len(scripted_engine.batches) == 3
    assert cache.draw(batch) == answers
