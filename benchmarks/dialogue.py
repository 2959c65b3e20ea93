"""Earlier turns of a hidden user: questions, and answers that were to their taste, though nothing says so.

In: a Setting, users. Out: a Dialogue a user; answers behind it, and how many tokens it costs a request.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from setting import Setting
from users import User

from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import AnswerBatch, Conversations, DrawnAnswer
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.training.data.conversation import Conversation

Dialogue = list[tuple[Conversation, DrawnAnswer]]
"""Prompts and their answers."""


def told(setting: Setting, users: Sequence[User], turns: int) -> dict[str, Dialogue]:
    """By user, drawn from the base that is told their sentences."""
    sentences = comparison_conditions.instructions_of(setting.config)
    asked = [
        Condition(user.name, instruction=" ".join(sentences[name] for name in user.taste))
        for user in users
    ]
    prompts = setting.others[:turns]
    (said,) = setting.kept.answers(AnswerBatch(setting.base, None, prompts, asked, [setting.drawn]))
    return {
        u.name: list(zip(prompts, row, strict=True)) for u, row in zip(users, said, strict=True)
    }


def messages(dialogue: Dialogue) -> list[dict[str, str]]:
    """Both sides of it."""
    found = []
    for prompt, answer in dialogue:
        found += [*prompt.messages(), {"role": "assistant", "content": answer.text}]
    return found


def behind(
    setting: Setting, users: Sequence[User], known: Mapping[str, Dialogue]
) -> list[list[DrawnAnswer]]:
    """[user][prompt]: unguided, behind the dialogue; without losses, since a plain prompt's are not known."""
    prompts = [
        Conversation.model_validate([*messages(known[user.name]), *prompt.messages()])
        for user in users
        for prompt in setting.prompts
    ]
    plain = [comparison_conditions.unguided_condition()]
    ((said,),) = setting.kept.answers(
        AnswerBatch(setting.base, None, prompts, plain, [setting.drawn])
    )
    said, size = [replace(one, loss=None) for one in said], len(setting.prompts)
    return [said[start : start + size] for start in range(0, len(said), size)]


def length(tokenizer: Any, dialogue: Dialogue, prompts: Conversations) -> int:
    """Tokens that the dialogue adds to a request, on average."""
    more = [
        len(chat_token_ids(tokenizer, [*messages(dialogue), *prompt.messages()]))
        - len(chat_token_ids(tokenizer, prompt.messages()))
        for prompt in prompts
    ]
    return round(statistics.mean(more))
