"""Activation steering, as EasySteer and repeng do it: vectors from answers, added to the layers' outputs.

In: a Transformers model, prompts, instructions. Out: a vector a layer, and the model steered by them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.paper.transformers_decoding import TransformersDecoding
from pad_vllm.steering.comparison_conditions import (
    Condition,
    instructed_conditions,
    unguided_condition,
)
from pad_vllm.steering.guided_answers import Conversations, DrawnAnswer, condition_messages
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation

PLAIN = ""
"""Key of the plain answers."""

LearningAnswers = Mapping[str, Sequence[tuple[Conversation, DrawnAnswer]]]
"""PLAIN, or a dimension whose instruction was in the prompt -> prompts and answers."""


@torch.no_grad()
def mean_residuals(
    model: Any,
    tokenizer: Any,
    condition: Condition,
    pairs: Sequence[tuple[Conversation, DrawnAnswer]],
) -> Tensor:
    """Mean output of every layer over the answers' tokens.

    Args:
        model: The base.
        tokenizer: With its chat template.
        condition: Whose instruction, if any, is in the prompts.
        pairs: Prompts and answers.

    Returns:
        [L, H].
    """
    total, count = torch.zeros(()), 0
    for prompt, answer in pairs:
        prompt_ids = chat_token_ids(tokenizer, condition_messages(prompt, condition))
        ids = torch.tensor([[*prompt_ids, *answer.token_ids]])
        output = model(input_ids=ids, output_hidden_states=True, logits_to_keep=1)
        rows = torch.stack(output.hidden_states[1:])[:, 0, -len(answer.token_ids) :]
        total, count = total + rows.sum(1), count + rows.shape[1]
    return total / count


def learning_answers(
    decoding: TransformersDecoding, prompts: Conversations, instructions: Mapping[str, str]
) -> LearningAnswers:
    """Draws the answers that vectors are made from.

    Args:
        decoding: Of the base.
        prompts: Of the answers.
        instructions: Of each dimension.
    """
    conditions = [unguided_condition(), *instructed_conditions(instructions)]
    drawn = [decoding.draw(prompts, condition) for condition in conditions]
    pairs = [
        [pair for pair in zip(prompts, answers, strict=True) if pair[1].token_ids]
        for answers in drawn
    ]
    return dict(zip((PLAIN, *instructions), pairs, strict=True))


def steering_vectors(
    decoding: TransformersDecoding, answers: LearningAnswers, instructions: Mapping[str, str]
) -> dict[str, Tensor]:
    """Dimension -> [L, H] mean residual of instructed answers less that of plain answers.

    Args:
        decoding: Of the base.
        answers: Of `learning_answers`.
        instructions: Of each dimension.
    """
    read = partial(mean_residuals, decoding.model, decoding.tokenizer)
    plain = read(unguided_condition(), answers[PLAIN])
    conditions = instructed_conditions(instructions)
    return {
        name: read(condition, answers[name]) - plain
        for name, condition in zip(instructions, conditions, strict=True)
    }


def mean_directions(
    decoding: TransformersDecoding, answers: LearningAnswers, instructions: Mapping[str, str]
) -> Tensor:
    """[D, H] mean of the instructed base's final states less the base's, over the same answers' tokens: the
    best bias over the vocabulary that these answers teach. Arguments as of `steering_vectors`.
    """
    read = partial(mean_residuals, decoding.model, decoding.tokenizer)
    directions = []
    conditions = instructed_conditions(instructions)
    for name, condition in zip(instructions, conditions, strict=True):
        pairs = [*answers[PLAIN], *answers[name]]
        # Transformers gives the last layer's states behind the final norm.
        directions.append(read(condition, pairs)[-1] - read(unguided_condition(), pairs)[-1])
    return torch.stack(directions)


@contextlib.contextmanager
def activation_steering(model: Any, vectors: Tensor, strength: float) -> Iterator[None]:
    """Within it the middle third of the layers add `strength` times their vector to their output.

    Args:
        model: The base.
        vectors: [L, H], one a layer.
        strength: Factor of the vectors.
    """
    layers = model.model.layers
    hooks = []
    for number in range(len(layers) // 3, 2 * len(layers) // 3):
        vector = strength * vectors[number]

        def add(_: Any, __: Any, output: Any, vector: Tensor = vector) -> Any:
            if isinstance(output, tuple):
                return (output[0] + vector, *output[1:])
            return output + vector

        hooks.append(layers[number].register_forward_hook(add))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
