"""Per-request arguments: `pad_weights`, `pad_beta`, `pad_top_k`, the guards, `pad_preference`.

In: a request's `extra_args` (online: `vllm_xargs`) and the limits of this engine and adapter.
Out: a `Guidance`, or None for a request that asked for nothing. Every refusal is a ValueError,
which the front end turns into an HTTP 400 naming the value, what is accepted and the way out. It
knows no model and no tensor, and imports neither torch nor vLLM.
"""

import contextlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pad_vllm.wording import did_you_mean, listed, short_repr

WEIGHTS, BETA, TOP_K = "pad_weights", "pad_beta", "pad_top_k"
NO_REPEAT, MIN_P, PREFERENCE = "pad_no_repeat", "pad_min_p", "pad_preference"
EXPLAIN, ADAPTER = "pad_explain", "pad_adapter"
ARGUMENT_NAMES = (WEIGHTS, BETA, TOP_K, NO_REPEAT, MIN_P, PREFERENCE, EXPLAIN, ADAPTER)
ARGUMENT_PREFIX = "pad_"
NO_REPEAT_LENGTHS = (0, *range(2, 9))  # accepted of pad_no_repeat
MAX_PREFERENCE_CHARS = 2000  # characters; part of the reward model's prefill of the request
MAX_WEIGHTS_CHARS = (
    10_000  # characters of pad_weights in all: it is parsed in the server's event loop
)
MAX_WEIGHT = 1e4  # keeps w, the sum of w and the rewards made from them finite in float32
_FORM = """'helpful=1,humor=0.5', '{"helpful": 1}' or ["helpful=1", "humor=0.5"]"""

NamedWeights = list[tuple[str, float]]


@dataclass(frozen=True)
class Guidance:
    """One request's guidance. All-zero weights are guidance too: they only cut to the top k."""

    weights: tuple[float, ...]
    """One per dimension, in the adapter's order; 0 for a dimension the request did not name. Where several
    adapters are served their dimensions have places one after the other, and zeros stand before these.
    """

    beta: float
    """Strength of the reward; a negative one steers away."""

    top_k: int
    """Number of candidates: the base's k highest logits; all other tokens get -inf."""

    preference: str = ""
    """Text for the reward model's prompt alone; empty for none."""

    no_repeat: int = 0
    """Length of the n-grams whose repetition earns no more than the average candidate; 0 is off."""

    min_p: float = 0.0
    """A candidate less likely than this share of the base's best earns no more either; 0 is off."""

    explain: bool = False
    """Whether the answer comes with what each of its tokens earned."""


@dataclass(frozen=True)
class RequestLimits:
    """What the served adapter and engine accept. Raises ValueError where the defaults break the
    limits, so that an engine which would refuse its own defaults never starts.
    """

    dimensions: tuple[str, ...]
    """Names of the preference dimensions, in the adapter's order."""

    beta: float
    """The adapter's default strength."""

    top_k: int
    """The adapter's default number of candidates."""

    max_beta: float
    """Largest |pad_beta|."""

    max_top_k: int
    """Largest pad_top_k."""

    no_repeat: int = 0
    """The adapter's default length of n-grams whose repetition earns nothing."""

    min_p: float = 0.0
    """The adapter's default share of the best's probability, below which nothing is earned."""

    engine: str = "shared"
    """The reward engine that serves."""

    first_dimension: int = 0
    """Where this adapter's dimensions begin among those of all that are served."""

    worker_key: str | None = None
    """What the worker knows it by, where that may not be the name that a client gives."""

    other_adapters: Mapping[str, "RequestLimits"] = field(default_factory=dict)
    """What the other adapters accept, by the name that a request gives."""

    def __post_init__(self) -> None:
        for name, default, limit in (
            ("beta", abs(self.beta), self.max_beta),
            ("top_k", self.top_k, self.max_top_k),
        ):
            if default > limit:
                raise ValueError(
                    f"the adapter's default {name} is {default:g}, and this engine accepts at "
                    f"most {limit:g}. Raise max_{name} in additional_config['pad'], or lower "
                    f"{name} in pad_config.json."
                )

    @property
    def worker_arguments(self) -> dict[str, str]:
        """The argument by which the worker knows the adapter, in the place of the client's."""
        return {} if self.worker_key is None else {ADAPTER: self.worker_key}

    def for_adapter(self, name: str | None) -> "RequestLimits":
        """Those of the adapter that a request names; None is the one that needs no name."""
        if name is None:
            return self
        if name not in self.other_adapters:
            raise _refusal(
                ADAPTER,
                name,
                listed(self.other_adapters)
                if self.other_adapters
                else "nothing, one adapter is served",
                "leave it out for the server's own",
            )
        return self.other_adapters[name]


def parse_guidance(
    extra_args: Mapping[str, object] | None, limits: RequestLimits
) -> Guidance | None:
    """The guidance a request asks for, None where it has none of these arguments. Raises ValueError."""
    given = _syntax(extra_args)
    if given is None:
        return None
    limits = limits.for_adapter(given.adapter)
    if given.preference and limits.engine == "shared":
        raise _no_text(given.preference, limits.engine)
    beta = limits.beta if given.beta is None else given.beta
    top_k = limits.top_k if given.top_k is None else given.top_k
    if abs(beta) > limits.max_beta:
        raise _refusal(
            BETA,
            beta,
            f"-{limits.max_beta:g} to {limits.max_beta:g}",
            "ask for less, or raise the server's max_beta",
        )
    if top_k > limits.max_top_k:
        raise _refusal(
            TOP_K,
            top_k,
            f"an integer from 1 to {limits.max_top_k}",
            "ask for fewer, or raise the server's max_top_k",
        )
    no_repeat = limits.no_repeat if given.no_repeat is None else given.no_repeat
    min_p = limits.min_p if given.min_p is None else given.min_p
    weights = (0.0,) * limits.first_dimension + _ordered(given.weights, limits.dimensions)
    return Guidance(weights, beta, top_k, given.preference, no_repeat, min_p, given.explain)


def check_argument_syntax(extra_args: Mapping[str, object] | None) -> None:
    """Refuses whatever is wrong under every adapter, engine and limit; see `parse` for the rest."""
    _syntax(extra_args)


@dataclass(frozen=True)
class _Given:
    """What the request itself says, before the adapter's names, defaults and limits."""

    weights: NamedWeights
    beta: float | None
    top_k: int | None
    no_repeat: int | None
    min_p: float | None
    preference: str
    explain: bool
    adapter: str | None


def _syntax(extra_args: Mapping[str, object] | None) -> _Given | None:
    ours = {
        name: value
        for name, value in (extra_args or {}).items()
        if isinstance(name, str) and name.startswith(ARGUMENT_PREFIX)
    }
    for name, value in ours.items():
        _check_known(name)
        if value is None:
            raise _refusal(name, value, "a value", "leave the argument out for its default")
    if not ours:
        return None
    if WEIGHTS not in ours:
        raise ValueError(
            f"{listed(ours)} given without {WEIGHTS}, so there is nothing to guide towards. "
            f"Add {WEIGHTS}, for example {_FORM}, or leave {listed(ours)} out."
        )
    beta = _number(BETA, ours[BETA]) if BETA in ours else None
    top_k = _whole(ours[TOP_K]) if TOP_K in ours else None
    no_repeat = _length(ours[NO_REPEAT]) if NO_REPEAT in ours else None
    min_p = _share(ours[MIN_P]) if MIN_P in ours else None
    preference = _text(ours[PREFERENCE]) if PREFERENCE in ours else ""
    explain = _switch(ours[EXPLAIN]) if EXPLAIN in ours else False
    adapter = _name(ours[ADAPTER]) if ADAPTER in ours else None
    weights = _weights(ours[WEIGHTS])
    return _Given(weights, beta, top_k, no_repeat, min_p, preference, explain, adapter)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_PREFERENCE_CHARS:
        raise _refusal(
            PREFERENCE,
            value,
            f"text of 1 to {MAX_PREFERENCE_CHARS} characters, such as 'formal but humorous'",
            "say it shorter, or leave the argument out",
        )
    return value.strip()


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_PREFERENCE_CHARS:
        raise _refusal(
            ADAPTER, value, "the name of an adapter that is served", "leave it out for the default"
        )
    return value


def _check_known(name: str) -> None:
    # A typo must not silently switch guidance off.
    if name not in ARGUMENT_NAMES:
        raise ValueError(
            f"unknown request argument {short_repr(name)}.{did_you_mean(name, ARGUMENT_NAMES)} Arguments that "
            f"begin with '{ARGUMENT_PREFIX}' are PAD's; accepted: {listed(ARGUMENT_NAMES)}. Rename or remove it."
        )


def _no_text(value: object, engine: str) -> ValueError:
    return _refusal(
        PREFERENCE,
        value,
        f"no preference text on the {engine!r} engine, whose reward model reads the same tokens "
        "as the base",
        f"put the text into your own prompt, and weigh the adapter's dimensions with {WEIGHTS}",
    )


def _weights(value: object) -> NamedWeights:
    """Weights by name in the order given: names stripped and unique, numbers within bounds."""
    if _size(value) > MAX_WEIGHTS_CHARS:
        raise _refusal(
            WEIGHTS, value, f"at most {MAX_WEIGHTS_CHARS:,} characters", "name only what is not 0"
        )
    pairs = [(name.strip(), number) for name, number in _raw_pairs(value)]
    if not pairs:
        raise _refusal(
            WEIGHTS, value, _FORM, f"name at least one dimension, or leave {WEIGHTS} out"
        )
    seen: set[str] = set()
    for name, _ in pairs:
        if not name:
            raise _refusal(WEIGHTS, value, _FORM, "put a dimension's name before every '='")
        if name in seen:
            raise _refusal(
                WEIGHTS, value, "each dimension once", f"drop one of the two {short_repr(name)}"
            )
        seen.add(name)
    return [(name, _weight(name, number)) for name, number in pairs]


def _size(value: object) -> int:
    """Characters of a text; of a list or an object those of its texts and one for every entry."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, list | tuple | Mapping):
        return 0
    if len(value) > MAX_WEIGHTS_CHARS:
        return len(value)
    return len(value) + sum(len(entry) for entry in value if isinstance(entry, str))


def _raw_pairs(value: object) -> list[tuple[str, object]]:
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            return _json_pairs(text)
        return _split(text.split(","), value) if text else []
    if isinstance(value, list | tuple):
        return _split(value, value)
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return list(value.items())  # offline only: over HTTP vLLM lets no object through
    raise _refusal(WEIGHTS, value, _FORM, "write the weights in one of these forms")


def _split(items: Iterable[object], value: object) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = []
    for item in items:
        if not isinstance(item, str) or "=" not in item:
            raise _refusal(WEIGHTS, value, _FORM, f"write {short_repr(item)} as name=number")
        name, _, number = item.partition("=")
        pairs.append((name, number))
    return pairs


def _json_pairs(text: str) -> list[tuple[str, object]]:
    try:
        # Pairs, not a dict: json would keep the last of two equal names and say nothing.
        parsed = json.loads(text, object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError) as error:  # RecursionError: thousands of nested brackets
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise _refusal(WEIGHTS, text, _FORM, f"correct the JSON ({reason})") from None
    return list(parsed)


def _weight(name: str, value: object) -> float:
    number = _number(f"{WEIGHTS} for {short_repr(name)}", value)
    if abs(number) > MAX_WEIGHT:
        raise _refusal(
            f"{WEIGHTS} for {short_repr(name)}",
            value,
            f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}, which keeps rewards finite in float32",
            "scale the weights down",
        )
    return number


def _number(what: str, value: object) -> float:
    """A finite number from an int, a float or text; a bool is neither."""
    number = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    # 1_000 is Python's spelling, not a number a client would mean.
    if not math.isfinite(number) or (isinstance(value, str) and "_" in value):
        raise _refusal(what, value, "a finite number", "correct the number")
    return number


def _whole(value: object) -> int:
    number = _number(TOP_K, value)
    if not number.is_integer() or number < 1:
        raise _refusal(
            TOP_K, value, "an integer of at least 1", "ask for a whole number of candidates"
        )
    return int(number)


def _length(value: object) -> int:
    number = _number(NO_REPEAT, value)
    if number not in NO_REPEAT_LENGTHS:
        raise _refusal(
            NO_REPEAT,
            value,
            f"0 for off, or an n-gram's length from {NO_REPEAT_LENGTHS[1]} to {NO_REPEAT_LENGTHS[-1]}",
            "3 stops most loops",
        )
    return int(number)


def _share(value: object) -> float:
    number = _number(MIN_P, value)
    if not 0 <= number <= 1:
        raise _refusal(
            MIN_P,
            value,
            "0 for off, or a share of the best candidate's probability, at most 1",
            "0.15 keeps guidance from raising unlikely tokens",
        )
    return number


def _switch(value: object) -> bool:
    spelled = str(value).strip().lower()
    if spelled not in ("true", "false", "0", "1"):
        raise _refusal(EXPLAIN, value, "true or false", "leave it out for false")
    return spelled in ("true", "1")


def _ordered(pairs: NamedWeights, dimensions: tuple[str, ...]) -> tuple[float, ...]:
    for name, _ in pairs:
        if name not in dimensions:
            raise ValueError(
                f"{WEIGHTS} names {short_repr(name)}, which this adapter does not have."
                f"{did_you_mean(name, dimensions)} Accepted dimensions: {listed(dimensions)}. "
                "Use these names (case matters), or serve an adapter trained on yours."
            )
    named = dict(pairs)
    return tuple(named.get(name, 0.0) for name in dimensions)


def _refusal(what: str, value: object, accepted: str, way_out: str) -> ValueError:
    return ValueError(f"{what} is {short_repr(value)}; accepted: {accepted}. Way out: {way_out}.")
