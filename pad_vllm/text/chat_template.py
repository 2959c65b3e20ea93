"""A conversation as the model reads it: the chat template, then the tokenizer, in one way for all callers.

In: a base's tokenizer, and a template where it has none of its own. Out: token ids. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def chat_token_ids(tokenizer: Any, messages: Sequence[dict[str, str]]) -> list[int]:
    """Token ids of a conversation up to where the assistant begins.

    Raises jinja2.TemplateError for a conversation that the template rejects.
    """
    text = _rendered(tokenizer, messages)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _rendered(tokenizer: Any, messages: Sequence[dict[str, str]]) -> str:
    template = tokenizer.chat_template
    return str(
        tokenizer.apply_chat_template(
            list(messages),
            # Passed although it is the tokenizer's own: vLLM's tokenizers work on a copy, which does not get
            # a template that was set later.
            chat_template=template if isinstance(template, str) else None,
            tokenize=False,
            add_generation_prompt=True,
        )
    )


def load_chat_tokenizer(folder: str | Path, base: str, template: str | None) -> Any:
    """The tokenizer in a checkpoint's folder, with a chat template.

    Args:
        folder: the checkpoint.
        base: what messages call it.
        template: as in `with_chat_template`.

    Raises:
        ValueError: as `with_chat_template` does.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return with_chat_template(tokenizer, base, template)


def with_chat_template(tokenizer: Any, base: str, template: str | None) -> Any:
    """The same tokenizer, checked to render a user's turn.

    Args:
        tokenizer: changed in place where a template is given.
        base: what messages call its model.
        template: a Jinja template to use instead of the tokenizer's own; None to use that.

    Raises:
        ValueError: there is no template, or it renders no conversation at all.
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
        rendered = _rendered(tokenizer, [{"role": "user", "content": "Hi"}])
    except TemplateError as error:
        raise ValueError(
            f"the chat template of {base} takes no user's turn ({error}). Correct it, or give "
            "another: --chat-template FILE"
        ) from error
    if "Hi" not in rendered:
        raise ValueError(
            f"the chat template of {base} leaves out what the user says. Correct it, or give another: "
            "--chat-template FILE"
        )
    return tokenizer


def read_chat_template(text_or_file: str, setting: str) -> str:
    """A chat template's text, from a file's name or the text itself, as in vLLM's --chat-template.

    Raises ValueError for what is neither; `setting` is the option or field that the message names.
    """
    if "{" in text_or_file or "\n" in text_or_file:
        return text_or_file
    try:
        return Path(text_or_file).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"{setting} is {text_or_file!r}, which is neither a template nor a file that can be read "
            f"({error}). Name a file that holds a Jinja template."
        ) from None
