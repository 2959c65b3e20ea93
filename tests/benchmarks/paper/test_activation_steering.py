"""Vectors and a bias from answers: the same prompt teaches nothing, another one a direction."""

from __future__ import annotations

import pytest
import tiny

from benchmarks.paper.activation_steering import (
    PLAIN,
    learning_answers,
    mean_directions,
    steering_vectors,
)
from benchmarks.paper.transformers_decoding import TransformersDecoding
from pad_vllm.text.conversation import Conversation

PROMPTS = [Conversation.model_validate(text) for text in ("one", "a longer one")]


@pytest.fixture(scope="module")
def decoding():
    return TransformersDecoding(
        tiny.persrm("llama", 4, ("a",), 0.5).backbone, tiny.tokenizer(), 0.0, 6
    )


def test_without_a_sentence_there_is_nothing_to_learn(decoding):
    nothing = {"a": ""}
    answers = learning_answers(decoding, PROMPTS, nothing)
    assert set(answers) == {PLAIN, "a"}
    assert not steering_vectors(decoding, answers, nothing)["a"].any()
    assert not mean_directions(decoding, answers, nothing).any()


def test_a_sentence_gives_a_vector_a_layer_and_a_direction_of_the_final_state(decoding):
    sentence = {"a": "two three"}
    answers = learning_answers(decoding, PROMPTS, sentence)
    config = decoding.model.config
    vectors = steering_vectors(decoding, answers, sentence)["a"]
    assert vectors.shape == (config.num_hidden_layers, config.hidden_size)
    (direction,) = mean_directions(decoding, answers, sentence)
    assert direction.shape == (config.hidden_size,)
    assert direction.any()
