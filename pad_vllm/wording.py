"""Parts of error messages: the value found, cut short; a list of names; the name probably meant.

In: any Python value. Out: a fragment of an error message. Knows nothing about models, requests or
files, and never raises: it runs while another error is being written.
"""

import difflib
import reprlib
from collections.abc import Iterable

_LONGEST = 80  # characters of a caller's value that an error repeats; a request may send megabytes


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _LONGEST

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers beyond 4,300 digits, and a refusal may not fail itself.
        return super().repr_int(x, level) if x.bit_length() < 4096 else "a huge integer"


_SHORT = _Short()


def short_repr(value: object) -> str:
    """`repr(value)`, cut to a length that fits in an error message."""
    text = _SHORT.repr(value)
    return text if len(text) <= 3 * _LONGEST else text[: 3 * _LONGEST] + "..."


def listed(names: Iterable[str]) -> str:
    """`a, b, c`, or `none` for nothing."""
    return ", ".join(names) or "none"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with a leading space, or nothing where no known name is near."""
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name[:_LONGEST].casefold(), folded, n=1)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""
