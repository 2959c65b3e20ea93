"""Parts of error messages: a value cut short, a list of names, the name probably meant, a whole refusal.

In: any Python value. Out: a fragment of an error message, or the error. Knows nothing about models, requests
or files, and never raises: it runs while another error is being written.
"""

import difflib
import reprlib
from collections.abc import Collection, Iterable
from itertools import islice

_MAX_CHARS = 80  # of a caller's value that an error repeats; a request may send megabytes


class _ShortRepr(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _MAX_CHARS

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to print integers beyond 4,300 digits, and a refusal may not fail itself.
        return super().repr_int(x, level) if x.bit_length() < 4096 else "a huge integer"


_SHORT_REPR = _ShortRepr()


def short_repr(value: object) -> str:
    """`repr(value)`, cut to a length that fits in an error message."""
    text = _SHORT_REPR.repr(value)
    return text if len(text) <= 3 * _MAX_CHARS else text[: 3 * _MAX_CHARS] + "..."


def listed(names: Iterable[str]) -> str:
    """The names separated by commas: `a, b, c`; `none` where there are none."""
    return ", ".join(names) or "none"


def first_listed(names: Collection[str], limit: int = 8) -> str:
    """The same of names that a file may have chosen: the first ones, cut short and without control
    characters, and how many more there are.
    """
    shown = listed(short_repr(name).strip("'") for name in islice(names, limit))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, with its leading space; empty where no known name is similar."""
    folded = {other.casefold(): other for other in known}
    near = difflib.get_close_matches(name[:_MAX_CHARS].casefold(), folded, n=1)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""


def refusal(what: str, value: object, accepted: str, way_out: str) -> ValueError:
    """The error for a value that is refused.

    Args:
        what: name of the argument.
        value: what was given for it; shown cut short.
        accepted: what would have been accepted.
        way_out: what to do, an imperative without a full stop.
    """
    return ValueError(f"{what} is {short_repr(value)}; accepted: {accepted}. Way out: {way_out}.")
