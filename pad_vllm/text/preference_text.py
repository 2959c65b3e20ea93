"""A preference in words inside a conversation: in the form of the paper's code, or as people ask for it.

In: messages and a text. Out: messages. Training and the reward model's prompt both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pad_vllm.wording import short_repr


def with_preference(messages: Sequence[Mapping[str, str]], text: str) -> list[dict[str, str]]:
    """The conversation with `text` before its last user turn's content. Raises ValueError without one."""
    return _changed(
        messages,
        lambda asked: (
            "[Guidelines] Your task is to generate response by considering the following "
            f"principle. [Principles] {text} [Instruction] {asked}"
        ),
    )


def with_instruction(messages: Sequence[Mapping[str, str]], text: str) -> list[dict[str, str]]:
    """The conversation with `text` after its last user turn's content. Raises ValueError without one.

    Of a base that was never trained on `with_preference`'s form this is what it follows: a small one
    takes those guidelines for the subject it is asked about.
    """
    return _changed(messages, lambda asked: f"{asked}\n\n{text}")


def _changed(
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
