"""What a client may not write in a request: what vLLM would drop, or the reward model misread.

In: a request of chat, completions or responses as vLLM read it. Out: nothing, or a ValueError, which the
client sees as HTTP 400. What `pad_` arguments may say is checked elsewhere (params.py). Imports no vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pad_vllm.params import ARGUMENT_PREFIX, PREFERENCE
from pad_vllm.wording import listed, short_repr

_ROLES = ("system", "user", "assistant")

_SWITCHES: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("tools", bool),
    ("documents", bool),
    ("chat_template", bool),
    ("chat_template_kwargs", bool),
    ("continue_final_message", bool),
    ("add_generation_prompt", lambda value: value is False),
    ("reasoning_effort", bool),
)
"""Fields that put something into a prompt beside its turns, or take it apart; and when they do."""


def request_field_check(needs_turns: Callable[[Mapping[str, Any]], bool]) -> Callable[[Any], None]:
    """The check of a request; reads_turns: whether the reward model needs the turns of the conversation
    of a request with these vllm_xargs.
    """

    def check(request: Any) -> None:
        _require_inside(request.model_extra or {})
        ours = _ours(request.vllm_xargs or {})
        if ours and getattr(request, "use_beam_search", False):
            raise ValueError(
                f"use_beam_search together with {listed(ours)}: vLLM's beam search cannot be guided. "
                f"Drop use_beam_search (n and temperature give several answers), or {listed(ours)}."
            )
        if ours and needs_turns(request.vllm_xargs):
            _require_turns(request)

    return check


def _ours(names: Mapping[str, Any]) -> list[str]:
    return [name for name in names if name.startswith(ARGUMENT_PREFIX)]


def _require_inside(extra: Mapping[str, Any]) -> None:
    if beside := _ours(extra):
        inside = json.dumps({"vllm_xargs": {name: extra[name] for name in beside}}, default=str)
        raise ValueError(
            f"{listed(beside)} stands beside vllm_xargs, where it would be ignored; accepted: inside of "
            f"it. Write {inside[:500]} (the OpenAI client: extra_body={inside[:500]})."
        )


def _require_turns(request: Any) -> None:
    """Raises ValueError for what the reward model could not read turn by turn, and names the field."""
    for name, hides in _SWITCHES:
        value = getattr(request, name, None)
        if value is not None and hides(value):
            raise _unreadable(name, value)
    for place, message in enumerate(_messages(request)):
        for name, value in _hidden(message):
            raise _unreadable(f"messages[{place}].{name}", value)


def _messages(request: Any) -> list[Any]:
    given = getattr(request, "messages", None) or getattr(request, "input", None)
    return given if isinstance(given, list) else []


def _hidden(message: Any) -> Iterator[tuple[str, Any]]:
    """What of a message is not text of a turn."""
    fields = message if isinstance(message, Mapping) else dict(message)
    if fields.get("role") not in _ROLES:
        yield "role", fields.get("role") or fields.get("type")
    for name in ("tool_calls", "tool_call_id", "function_call"):
        if fields.get(name):
            yield name, fields[name]
    content = fields.get("content")
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, Mapping) else "text"
        if kind not in ("text", "input_text", "output_text"):
            yield "content", kind


def _unreadable(name: str, value: Any) -> ValueError:
    return ValueError(
        f"{name} is {short_repr(value)}, and this engine's reward model reads a conversation turn by turn; "
        f"accepted: turns of {listed(_ROLES)} as text. Write it into a turn's text, leave the request "
        f"unguided, or use an adapter trained on the served model (without {PREFERENCE})."
    )
