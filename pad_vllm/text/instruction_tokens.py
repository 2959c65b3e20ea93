"""An instruction as the tokens of a text of its own: a system turn and line feeds, which fill KV blocks.

In: a tokenizer, a sentence. Out: token ids. Knows no model and no engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pad_vllm.wording import short_repr


def instruction_token_ids(tokenizer: Any, instruction: str) -> list[int]:
    """Tokens of an instruction that is read alone.

    A system turn; where the chat template takes none, a user turn; without a template the plain text. Then
    a line feed, which `fill_blocks` repeats; where the tokenizer has none, the last token once more.

    Args:
        tokenizer: of the base, with its chat template if it has one.
        instruction: a sentence, such as "Answer in a funny way".

    Returns:
        Token ids, at least one.

    Raises:
        ValueError: the chat template renders neither a system nor a user turn with this text.
    """
    ids = list(
        tokenizer(_instruction_text(tokenizer, instruction), add_special_tokens=False)["input_ids"]
    )
    line_feed = tokenizer("\n", add_special_tokens=False)["input_ids"]
    return [*ids, (line_feed or ids)[-1]]


def fill_blocks(token_ids: Sequence[int], block_size: int) -> tuple[int, ...]:
    """An instruction's tokens with its last one repeated, to a whole number of blocks of `block_size` tokens.

    Measured on a base of 0.5B, line feeds change what an instruction does less than repeating it would.
    """
    missing = -len(token_ids) % block_size
    return (*token_ids, *[token_ids[-1]] * missing)


def _instruction_text(tokenizer: Any, instruction: str) -> str:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        return f"{instruction}\n\n"
    for role in ("system", "user"):
        try:
            text = str(
                tokenizer.apply_chat_template(
                    [{"role": role, "content": instruction}],
                    tokenize=False,
                    add_generation_prompt=False,
                )
            )
        except TemplateError:
            continue
        if instruction.strip() in text:
            return text
    raise ValueError(
        f"the chat template renders neither a system nor a user turn with {short_repr(instruction)} in it; "
        "accepted: a template that does one of the two. Give one: --chat-template FILE"
    )
