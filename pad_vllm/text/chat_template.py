"""A conversation as the model reads it: the chat template, then the tokenizer, in the one way used here.

In: a base's tokenizer, and a template where it has none of its own. Out: token ids. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def chat_token_ids(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of a conversation up to where the assistant begins.

    Raises jinja2.TemplateError for a conversation that the template does not take.
    """
    text = _rendered(tokenizer, messages)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rendered(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    known = tokenizer.chat_template
    return str(
        tokenizer.apply_chat_template(
            list(messages),
            # Said once more: vLLM's tokenizers work on copies, which do not have what one was given later.
            chat_template=known if isinstance(known, str) else None,
            tokenize=False,
            add_generation_prompt=True,
        )
    )


def load_chat_tokenizer(folder: str | Path, base: str, template: str | None) -> Any:
    """The tokenizer in a checkpoint's folder, as `with_template` has it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return with_chat_template(tokenizer, base, template)


def with_chat_template(tokenizer: Any, base: str, template: str | None) -> Any:
    """The tokenizer of `base`, with `template` in the place of its own where one is given.

    Raises ValueError where there is none, or where it takes no conversation at all.
    """
    from jinja2 import TemplateError

    if template is not None:
        tokenizer.chat_template = template
    if not tokenizer.chat_template:
        raise ValueError(
            f"{base} has no chat template, which says how a conversation is put to a model; a "
            "pretrained base often has none. Give one: --chat-template FILE (Jinja), the one it will "
            "be served with"
        )
    try:
        shown = _rendered(tokenizer, [{"role": "user", "content": "Hi"}])
    except TemplateError as error:
        raise ValueError(
            f"the chat template of {base} takes no user's turn ({error}). Correct it, or give "
            "another: --chat-template FILE"
        ) from error
    if "Hi" not in shown:
        raise ValueError(
            f"the chat template of {base} leaves out what the user says. Correct it, or give another: "
            "--chat-template FILE"
        )
    return tokenizer


def read_chat_template(given: str, setting: str) -> str:
    """A chat template's text, from a file's name or the text itself, as vLLM takes it.

    Raises ValueError, which names the setting it was given by.
    """
    if "{" in given or "\n" in given:
        return given
    try:
        return Path(given).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"{setting} is {given!r}, which is neither a template nor a file that can be read "
            f"({error}). Name a file that holds a Jinja template."
        ) from None
