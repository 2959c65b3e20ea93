"""Names of users, as requests and routes give them. In: any value. Out: the name, or a ValueError."""

from pad_vllm.wording import refusal

MAX_USER_CHARS = 128
# Persian and several Indian scripts spell with these, and Python does not count them as printable.
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"
_UNDECODED = "\N{REPLACEMENT CHARACTER}"
_NO_PATH = (".", "..")  # clients shorten a path that holds them


def require_user_name(what: str, value: object) -> str:
    """A user's name. Raises ValueError for what is none.

    what: the argument's name, for the message.
    """
    if (
        isinstance(value, str)
        and 0 < len(value) <= MAX_USER_CHARS
        and all(one.isprintable() or one in _JOINERS for one in value)
        and value == value.strip()
        and not set("/\\" + _UNDECODED) & set(value)
        and value not in _NO_PATH
    ):
        return value
    raise refusal(
        what,
        value,
        f"a name of 1 to {MAX_USER_CHARS} printable characters of any script, in UTF-8, without / and \\ and "
        "without blanks around it",
        "take an identifier such as an account's number or 'alice'",
    )
