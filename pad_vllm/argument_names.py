"""Names of a request's arguments, and keys that are meant to be one of them. Knows nothing of values."""

from pad_vllm.weights_syntax import WEIGHTS_ARGUMENT

WEIGHTS, BETA, TOP_K = WEIGHTS_ARGUMENT, "pad_beta", "pad_top_k"
NO_REPEAT, MIN_P, LOOP_PRICE = "pad_no_repeat", "pad_min_p", "pad_loop_price"
PREFERENCE = "pad_preference"
EXPLAIN, ADAPTER, USER = "pad_explain", "pad_adapter", "pad_user"
GUARDS = (NO_REPEAT, MIN_P, LOOP_PRICE)
ARGUMENT_NAMES = (WEIGHTS, BETA, TOP_K, *GUARDS, PREFERENCE, EXPLAIN, ADAPTER, USER)
ARGUMENT_PREFIX = "pad_"

INSTRUCTION_KEY = "_pad_instruction"
"""In the `extra_args` of a request with `pad_preference`, where the base's reward stream reads it: an
Instruction (instruction.py), which the front end puts there.
"""


def documented_spelling(name: str) -> str | None:
    """The argument that a key is but for case, `_` and `-`; None for other keys."""
    return _SPELLINGS.get(_folded(name))


def is_own_argument(name: object) -> bool:
    """Whether a key among a request's arguments is meant for PAD, spelt rightly or not."""
    return isinstance(name, str) and (
        name.startswith(ARGUMENT_PREFIX)
        or documented_spelling(name) is not None
        or name.casefold() == ARGUMENT_PREFIX.rstrip("_")
    )


def _folded(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "")


_SPELLINGS = {_folded(name): name for name in ARGUMENT_NAMES}
