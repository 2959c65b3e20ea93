"""What an adapter's record says: judges that taught a dimension, and prompts that may not be asked again."""

from __future__ import annotations

import dataclasses

import pytest
import tiny

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.steering.training_record import (
    judges_that_taught,
    prompts_are_recorded,
    require_separate_prompts,
)
from pad_vllm.text.conversation import Conversation, prompt_key
from pad_vllm.text.prompt_digests import digest_prompts


def prompts(*texts):
    return [Conversation.model_validate(text) for text in texts]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    base = tiny.checkpoint("llama", tmp_path_factory.mktemp("base") / "tiny")
    folder = tiny.write_adapter(
        base, base.parent / "a", fork_layer=2, std=0.1, dimensions=("warm", "positive")
    )
    return load_adapter(folder).config


def trained(config, **training):
    return dataclasses.replace(config, training=training)


def test_scorers_and_sentences_that_taught_are_named_by_the_record(config):
    scorers = {"positive": ["afinn", "classifier:x"], "warm": []}
    by_scores = trained(config, data={"scorers": scorers})
    assert judges_that_taught(by_scores) == {
        "positive": {"afinn", "classifier:x"},
        "warm": frozenset(),
    }
    by_sentences = trained(config, taught=[{"dimension": "warm", "sentences": ["Be warm."]}])
    assert judges_that_taught(by_sentences)["warm"] == {"teacher"}


def test_without_a_record_the_scorer_of_a_dimensions_name_may_have_taught_it(config):
    merged = [{"dimensions": {"positive": 1.0}}, {"dimensions": {"warm": 1.0}, "taught": []}]
    found = judges_that_taught(trained(config, parts=merged))
    assert found == {"positive": {"positive"}, "warm": frozenset()}


def test_prompts_that_an_adapter_was_trained_on_are_refused(config):
    digests = digest_prompts(map(prompt_key, prompts("One?", "Two?")))
    one = trained(
        config, parts=[{"data": {"trained_prompts": digests}}, {"data": {"trained_prompts": ""}}]
    )
    assert prompts_are_recorded(one)
    require_separate_prompts({"a": one}, prompts("Three?"), prompts("Four?"))
    with pytest.raises(
        ValueError, match="--prompts: 1 of its 2 prompts .* what a was trained on.*two\\?"
    ):
        require_separate_prompts({"a": one}, prompts("Three?", "two?"), ())
    with pytest.raises(ValueError, match="--judge-prompts: 2 of its 2 .*'One\\?'.*Take them out"):
        require_separate_prompts({"a": one}, (), prompts("One?", "Two?"))


def test_prompts_that_the_judges_were_fitted_on_are_refused(config):
    with pytest.raises(ValueError, match="--prompts: 1 of its 1 prompts .*--judge-prompts.*'One'"):
        require_separate_prompts({}, prompts("One"), prompts("one", "Two"))


def test_an_adapter_without_a_record_is_known_to_have_none(config):
    assert not prompts_are_recorded(config)
