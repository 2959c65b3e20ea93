"""Puts a preference in words into a conversation: in the form of PAD's own code, or as an instruction.

In: messages and a text. Out: messages. Training and the reward model's prompt both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pad_vllm.wording import short_repr


def with_preference(messages: Sequence[Mapping[str, str]], text: str) -> list[dict[str, str]]:
    """The conversation with `text` before its last user turn's content, in the form of PAD's own code.

    Raises ValueError for a conversation without a user turn.
    """
    return _with_changed_user_turn(
        messages,
        lambda content: (
            "[Guidelines] Your task is to generate response by considering the following "
            f"principle. [Principles] {text} [Instruction] {content}"
        ),
    )


def with_instruction(messages: Sequence[Mapping[str, str]], text: str) -> list[dict[str, str]]:
    """The conversation with the instruction `text` after its last user turn's content.

    A base that was never trained on `with_preference`'s form follows this one: a small base takes those
    guidelines for the subject of the question. Raises ValueError for a conversation without a user turn.
    """
    return _with_changed_user_turn(messages, lambda content: f"{content}\n\n{text}")


def _with_changed_user_turn(
    messages: Sequence[Mapping[str, str]], change: Callable[[str], str]
) -> list[dict[str, str]]:
    turns = [dict(message) for message in messages]
    for turn in reversed(turns):
        if turn["role"] == "user":
            turn["content"] = change(turn["content"])
            return turns
    raise ValueError(
        f"the conversation has no user turn (roles: {short_repr([turn['role'] for turn in turns])}); "
        "accepted: one at least, for the preference to stand in. Add it."
    )
