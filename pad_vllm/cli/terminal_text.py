"""Text of a model, as a terminal may be given it: control characters are shown and not obeyed."""

from __future__ import annotations

from rich.text import Text


def shown(text: str) -> str:
    """The text with every control character but line feeds and tabs as an escape, as Python writes it."""
    return "".join(
        character
        if character.isprintable() or character in "\n\t"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def terminal_text(text: str) -> Text:
    """`shown`, for rich, which finds no markup in it."""
    return Text(shown(text))
