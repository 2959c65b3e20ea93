"""Fields of a request that are refused: those vLLM would drop, and those that hide turns from a reward model.

In: a request to chat, completions or responses, as vLLM parsed it, or the JSON of a request to another route.
Out: nothing, or a ValueError, which the
client sees as HTTP 400. The values of `pad_` arguments are checked elsewhere (params.py). Imports no vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from pad_vllm.argument_names import PREFERENCE, documented_spelling, is_own_argument
from pad_vllm.wording import listed, short_repr

_ROLES = ("system", "user", "assistant")

_PROMPT_FIELDS: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("tools", bool),
    ("documents", bool),
    ("chat_template", bool),
    ("chat_template_kwargs", bool),
    ("continue_final_message", bool),
    ("add_generation_prompt", lambda value: value is False),
    ("reasoning_effort", bool),
)
"""Fields that add to a prompt something other than its turns, or change how turns are put together; and for
which values they do.
"""

_OTHERS_WORDS = frozenset(
    (
        *("messages", "input", "prompt", "previous_input_messages", "documents", "prompt_embeds"),
        *("system", "content_parts", "features", "question", "questions"),
        *("tools", "functions", "parameters", "properties"),
        *("response_format", "structured_outputs", "text", "schema", "json_schema", "guided_json"),
    )
)
"""Fields in which a key may be called anything: what was said, tools and schemas."""

_MAX_PLACE_CHARS = 200
_MAX_PLACES = 8
"""Misplaced arguments that a refusal names: a client chooses how many there are."""

NeedsConversationTurns = Callable[[Mapping[str, Any]], bool]
"""Of a request's vllm_xargs: whether the reward model has to read the conversation turn by turn."""


def request_field_check(needs_conversation_turns: NeedsConversationTurns) -> Callable[[Any], None]:
    """A check that raises ValueError for a request with a refused field."""

    def check(request: Any) -> None:
        require_arguments_in_place({**vars(request), **(request.model_extra or {})}, "vllm_xargs")
        arguments = _pad_arguments(request.vllm_xargs or {})
        if arguments and getattr(request, "use_beam_search", False):
            raise ValueError(
                f"use_beam_search together with {listed(arguments)}: vLLM's beam search cannot be guided. "
                f"Drop use_beam_search (n and temperature give several answers), or {listed(arguments)}."
            )
        if arguments and needs_conversation_turns(request.vllm_xargs):
            _require_readable_turns(request)

    return check


def require_arguments_in_place(fields: Mapping[str, Any], place: str | None) -> None:
    """Raises ValueError for arguments of PAD that a request has where they would be ignored.

    Args:
        fields: of the request, by name.
        place: where its route takes them, such as "vllm_xargs"; None for a route that takes none.
    """
    misplaced = {name: fields[name] for name in _pad_arguments(fields)}
    places = list(misplaced)
    for where, name, value in islice(_nested_arguments(fields, place), _MAX_PLACES):
        places.append(where)
        misplaced.setdefault(name, value)
    if not places:
        return
    found = f"{listed(map(short_repr, places))} would be ignored; accepted: "
    if place is None:
        raise ValueError(
            f"{found}no arguments of PAD, as this route has no place for them. Ask /v1/chat/completions, "
            "/v1/completions, /v1/responses or /v1/messages, with vllm_xargs."
        )
    spelt: Any = {documented_spelling(name) or name: value for name, value in misplaced.items()}
    for key in reversed(place.split(".")):
        spelt = {key: spelt}
    correct = json.dumps(spelt, default=str)[:500]
    client = f" (the OpenAI client: extra_body={correct})" if place == "vllm_xargs" else ""
    raise ValueError(
        f"{found}arguments of PAD inside the request's own {place}. Write {correct}{client}."
    )


def _pad_arguments(names: Mapping[str, Any]) -> list[str]:
    return [name for name in names if is_own_argument(name)]


def _nested_arguments(
    fields: Mapping[str, Any], accepted: str | None
) -> Iterator[tuple[str, str, Any]]:
    """Place, name and value of PAD's arguments, in any spelling, inside of a request's fields, but for those
    at the accepted place.
    """
    pending = [(name, value) for name, value in fields.items() if name not in _OTHERS_WORDS]
    while pending:  # no recursion: a client chooses the depth
        place, value = pending.pop()
        if place == accepted:
            continue
        if isinstance(value, Mapping):
            for name, inner in value.items():
                if not isinstance(name, str) or name in _OTHERS_WORDS:
                    continue
                inside = f"{place}.{name}"[:_MAX_PLACE_CHARS]
                if documented_spelling(name) is not None:
                    yield inside, name, inner
                pending.append((inside, inner))
        elif isinstance(value, list):
            pending += [(place, inner) for inner in value]


def _require_readable_turns(request: Any) -> None:
    """Raises ValueError, naming the field, for what the reward model could not read turn by turn."""
    for name, hides_turns in _PROMPT_FIELDS:
        value = getattr(request, name, None)
        if value is not None and hides_turns(value):
            raise _unreadable(name, value)
    for index, message in enumerate(_messages(request)):
        for name, value in _unreadable_fields(message):
            raise _unreadable(f"messages[{index}].{name}", value)


def _messages(request: Any) -> list[Any]:
    messages = getattr(request, "messages", None) or getattr(request, "input", None)
    return messages if isinstance(messages, list) else []


def _unreadable_fields(message: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a message, with their values, that are not the role and text of a turn."""
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
