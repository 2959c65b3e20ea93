"""Earlier turns of a simulated user: questions, and answers to the user's taste, which nobody states.

In: an AnswerExperiment, users. Out: a Dialogue a user; answers behind it, and how many tokens it adds to a
request.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.common.answer_experiment import AnswerExperiment
from benchmarks.users.user_tastes import SimulatedUser
from pad_vllm.steering.comparison_conditions import Condition, instructions_of, unguided_condition
from pad_vllm.steering.guided_answers import AnswerBatch, Conversations, DrawnAnswer
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation

Dialogue = list[tuple[Conversation, DrawnAnswer]]
"""Prompts and their answers."""


def draw_dialogues(
    experiment: AnswerExperiment, users: Sequence[SimulatedUser], turns: int
) -> dict[str, Dialogue]:
    """Dialogues by user, answered by the base with the instructions of the user's taste in its prompt.

    Args:
        experiment: Its judge prompts are the questions.
        users: The simulated users.
        turns: Questions of each dialogue.
    """
    instructions = instructions_of(experiment.config)
    conditions = [
        Condition(user.name, instruction=" ".join(instructions[name] for name in user.taste))
        for user in users
    ]
    prompts = experiment.judge_prompts[:turns]
    batch = AnswerBatch(experiment.base, None, prompts, conditions, [experiment.decoding])
    (answers,) = experiment.cache.draw(batch)
    return {
        user.name: list(zip(prompts, of_user, strict=True))
        for user, of_user in zip(users, answers, strict=True)
    }


def dialogue_messages(dialogue: Dialogue) -> list[dict[str, str]]:
    """The messages of both sides."""
    messages = []
    for prompt, answer in dialogue:
        messages += [*prompt.messages(), {"role": "assistant", "content": answer.text}]
    return messages


def draw_behind_dialogues(
    experiment: AnswerExperiment,
    users: Sequence[SimulatedUser],
    dialogues: Mapping[str, Dialogue],
) -> list[list[DrawnAnswer]]:
    """Unguided answers to the experiment's prompts behind each user's dialogue.

    Args:
        experiment: Its base and prompts.
        users: The simulated users.
        dialogues: By user.

    Returns:
        [user][prompt], without losses: vLLM's are of the prompt with the dialogue, not of the plain one.
    """
    prompts = [
        Conversation.model_validate([*dialogue_messages(dialogues[user.name]), *prompt.messages()])
        for user in users
        for prompt in experiment.prompts
    ]
    conditions, decodings = [unguided_condition()], [experiment.decoding]
    batch = AnswerBatch(experiment.base, None, prompts, conditions, decodings)
    ((answers,),) = experiment.cache.draw(batch)
    answers = [replace(answer, loss=None) for answer in answers]
    count = len(experiment.prompts)
    return [answers[start : start + count] for start in range(0, len(answers), count)]


def added_tokens(tokenizer: Any, dialogue: Dialogue, prompts: Conversations) -> int:
    """How many tokens the dialogue adds to a request, the mean over the prompts.

    Args:
        tokenizer: Of the base, with its chat template.
        dialogue: In front of each prompt.
        prompts: Of the requests.
    """
    messages = dialogue_messages(dialogue)
    added = [
        len(chat_token_ids(tokenizer, [*messages, *prompt.messages()]))
        - len(chat_token_ids(tokenizer, prompt.messages()))
        for prompt in prompts
    ]
    return round(statistics.mean(added))
