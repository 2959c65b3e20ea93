"""A request's arguments: `pad_weights`, `pad_beta`, `pad_top_k`, the guards, `pad_preference` and others.

In: a request's `extra_args` (online: `vllm_xargs`) and the RequestLimits of this engine and adapter.
Out: a `Guidance`, or None for a request without these arguments. Every refusal is a ValueError,
which the front end turns into an HTTP 400 naming the value, what is accepted and the way out. It
knows no model and no tensor, and imports neither torch nor vLLM.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pad_vllm.argument_names import (
    ADAPTER,
    ARGUMENT_NAMES,
    ARGUMENT_PREFIX,
    BETA,
    EXPLAIN,
    INSTRUCTION_KEY,
    LOOP_PRICE,
    MIN_P,
    NO_REPEAT,
    PREFERENCE,
    TOP_K,
    USER,
    WEIGHTS,
    is_own_argument,
)
from pad_vllm.instruction import Instruction, InstructionTokens, LearnedInstruction
from pad_vllm.request_limits import InstructionDefaults, RequestLimits
from pad_vllm.weights_syntax import (
    WEIGHTS_FORMS,
    NamedWeights,
    finite_number,
    parse_weights,
)
from pad_vllm.wording import did_you_mean, listed, refusal, short_repr

NO_REPEAT_LENGTHS = (0, *range(2, 9))
"""Accepted values of pad_no_repeat."""

MAX_LOOP_PRICE = 10.0
"""Largest pad_loop_price, in logits."""

MAX_PREFERENCE_CHARS = 2000
"""Longest pad_preference, which is part of the reward model's prefill of the request."""


@dataclass(frozen=True)
class Guidance:
    """One request's guidance. All-zero weights are guidance too: they only cut to the top k."""

    weights: tuple[float, ...]
    """One per dimension, in the adapter's order; 0 for a dimension that the request did not name. Where
    several adapters are served, zeros for the dimensions of the adapters before its own stand in front.
    """

    beta: float
    """Strength of the reward; a negative one steers away."""

    top_k: int
    """Number of candidates: the base's k highest logits; all other tokens get -inf."""

    preference: str = ""
    """Text that only the reward model's prompt gets; empty for none."""

    instruction: Instruction | None = None
    """The same as token ids, or the learned prefix of that name, where the base's own reward stream reads it
    (`shared` with instructions). Set in the worker.
    """

    no_repeat: int = 0
    """No-repeat guard: a candidate that would repeat an n-gram of this length gets no more reward than the
    row's average candidate; 0 is off.
    """

    min_p: float = 0.0
    """Min-p guard: the same for a candidate whose probability is below this share of the base's most likely
    one; 0 is off.
    """

    loop_price: float = 0.0
    """What a candidate costs, in logits, that completes an n-gram which is already in the answer, for each
    token from the guard's length on (answer_tokens.LOOP_LENGTH where the guard is off); 0 is off.
    """

    explain: bool = False
    """Whether the answer comes with the reward of each of its tokens."""

    @property
    def reads_answer(self) -> bool:
        """Whether a candidate's score depends on the answer so far."""
        return bool(self.no_repeat or self.loop_price)


def parse_guidance(
    extra_args: Mapping[str, object] | None, limits: RequestLimits
) -> Guidance | None:
    """The guidance that a request asks for, None where it has none of these arguments. Raises ValueError."""
    arguments = _parse_arguments(extra_args, takes_instructions=limits.instructions is not None)
    if arguments is None:
        return None
    limits = limits.for_adapter(arguments.adapter)
    defaults = _defaults(arguments, limits)
    beta = defaults.beta if arguments.beta is None else arguments.beta
    top_k = defaults.top_k if arguments.top_k is None else arguments.top_k
    if abs(beta) > limits.max_beta:
        raise refusal(
            BETA,
            beta,
            f"-{limits.max_beta:g} to {limits.max_beta:g}",
            "ask for less, or raise the server's max_beta",
        )
    if top_k > limits.max_top_k:
        raise refusal(
            TOP_K,
            top_k,
            f"an integer from 1 to {limits.max_top_k}",
            "ask for fewer, or raise the server's max_top_k",
        )
    weights = _in_adapter_order(arguments.weights or [], limits.dimensions)
    return Guidance(
        weights=(0.0,) * limits.first_dimension + weights,
        beta=beta,
        top_k=top_k,
        preference=arguments.preference,
        no_repeat=defaults.no_repeat if arguments.no_repeat is None else arguments.no_repeat,
        min_p=defaults.min_p if arguments.min_p is None else arguments.min_p,
        loop_price=defaults.loop_price if arguments.loop_price is None else arguments.loop_price,
        explain=arguments.explain,
        instruction=_instruction(extra_args) if arguments.preference else None,
    )


def _defaults(
    arguments: "_Arguments", limits: RequestLimits
) -> RequestLimits | InstructionDefaults:
    """The defaults of what the request leaves out. Raises ValueError where it asks for nothing that is
    served.
    """
    takes_instructions = limits.instructions is not None
    if arguments.preference and limits.engine == "shared" and not takes_instructions:
        raise _preference_refusal(arguments.preference, limits.engine)
    if arguments.weights is None and not (arguments.preference and takes_instructions):
        raise _no_weights(arguments.names, takes_instructions=takes_instructions)
    if not arguments.preference or limits.instructions is None:
        return limits
    if arguments.weights is not None or arguments.preference not in limits.prefixes:
        return limits.instructions
    return limits.instructions.of_learned_prefix(arguments.preference, limits)


def _instruction(extra_args: Mapping[str, object] | None) -> Instruction | None:
    match (extra_args or {}).get(INSTRUCTION_KEY):
        case [str() as digest, int() as num_tokens]:
            return LearnedInstruction(digest, num_tokens)
        case [list() | tuple() as opening, list() | tuple() as sentence] if sentence:
            return InstructionTokens(tuple(opening), tuple(sentence))
    return None


def check_argument_syntax(extra_args: Mapping[str, object] | None) -> None:
    """Raises ValueError for arguments that are wrong whatever the adapter, engine and limits.

    `parse_guidance` checks these and everything else.
    """
    _parse_arguments(extra_args, takes_instructions=False)


@dataclass(frozen=True)
class _Arguments:
    """What the request itself says, before the adapter's names, defaults and limits; None is left out."""

    weights: NamedWeights | None
    beta: float | None
    top_k: int | None
    no_repeat: int | None
    min_p: float | None
    loop_price: float | None
    preference: str
    explain: bool
    adapter: str | None
    names: tuple[str, ...]


def _parse_arguments(
    extra_args: Mapping[str, object] | None, *, takes_instructions: bool
) -> _Arguments | None:
    """takes_instructions: for the message alone."""
    arguments = {name: value for name, value in (extra_args or {}).items() if is_own_argument(name)}
    for name, value in arguments.items():
        _require_known(name)
        if value is None:
            raise refusal(name, value, "a value", "leave the argument out for its default")
    if not arguments:
        return None
    if USER in arguments:  # with profiles, admission puts the user's weights in its place
        raise refusal(
            USER,
            arguments[USER],
            f"no user, as this engine keeps no profiles, but {WEIGHTS}",
            "start the server with --profiles FILE, or send the weights themselves",
        )
    if WEIGHTS not in arguments and PREFERENCE not in arguments:
        raise _no_weights(tuple(arguments), takes_instructions=takes_instructions)
    return _Arguments(
        beta=finite_number(BETA, arguments[BETA]) if BETA in arguments else None,
        top_k=_candidate_count(arguments[TOP_K]) if TOP_K in arguments else None,
        no_repeat=_ngram_length(arguments[NO_REPEAT]) if NO_REPEAT in arguments else None,
        min_p=_probability_share(arguments[MIN_P]) if MIN_P in arguments else None,
        loop_price=_loop_price(arguments[LOOP_PRICE]) if LOOP_PRICE in arguments else None,
        preference=_preference_text(arguments[PREFERENCE]) if PREFERENCE in arguments else "",
        explain=_boolean(EXPLAIN, arguments[EXPLAIN]) if EXPLAIN in arguments else False,
        adapter=_adapter_name(arguments[ADAPTER]) if ADAPTER in arguments else None,
        weights=parse_weights(arguments[WEIGHTS]) if WEIGHTS in arguments else None,
        names=tuple(arguments),
    )


def _no_weights(names: tuple[str, ...], *, takes_instructions: bool) -> ValueError:
    sentence = f"{PREFERENCE}, a sentence, or " if takes_instructions else ""
    return ValueError(
        f"{listed(names)} given without {WEIGHTS}, so there is nothing to guide towards. Add {sentence}"
        f"{WEIGHTS}, for example {WEIGHTS_FORMS}, or leave {listed(names)} out."
    )


def _require_known(name: str) -> None:
    # A typo must not silently switch guidance off.
    if name not in ARGUMENT_NAMES:
        raise ValueError(
            f"unknown request argument {short_repr(name)}.{did_you_mean(name, ARGUMENT_NAMES)} "
            f"Arguments that begin with '{ARGUMENT_PREFIX}' are PAD's; accepted: "
            f"{listed(ARGUMENT_NAMES)}. Rename or remove it."
        )


def _loop_price(value: object) -> float:
    price = finite_number(LOOP_PRICE, value)
    if not 0 <= price <= MAX_LOOP_PRICE:
        raise refusal(
            LOOP_PRICE,
            value,
            f"logits from 0 (off) to {MAX_LOOP_PRICE:g}",
            "0.25 to 0.5 ends most loops; correct it, or leave it out",
        )
    return price


def _preference_text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_PREFERENCE_CHARS:
        raise refusal(
            PREFERENCE,
            value,
            f"text of 1 to {MAX_PREFERENCE_CHARS} characters, such as 'formal but humorous'",
            "shorten it, or leave the argument out",
        )
    return value.strip()


def _preference_refusal(value: object, engine: str) -> ValueError:
    return refusal(
        PREFERENCE,
        value,
        f"no preference text on the {engine!r} engine, whose reward model reads the same tokens "
        "as the base",
        f"start the server with --instructions, or put the text into your own prompt, or weigh the adapter's "
        f"dimensions with {WEIGHTS}",
    )


def _adapter_name(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_PREFERENCE_CHARS:
        raise refusal(
            ADAPTER, value, "the name of an adapter that is served", "leave it out for the default"
        )
    return value


def _candidate_count(value: object) -> int:
    number = finite_number(TOP_K, value)
    if not number.is_integer() or number < 1:
        raise refusal(
            TOP_K, value, "an integer of at least 1", "ask for a whole number of candidates"
        )
    return int(number)


def _ngram_length(value: object) -> int:
    number = finite_number(NO_REPEAT, value)
    if number not in NO_REPEAT_LENGTHS:
        shortest, longest = NO_REPEAT_LENGTHS[1], NO_REPEAT_LENGTHS[-1]
        raise refusal(
            NO_REPEAT,
            value,
            f"0 for off, or an n-gram's length from {shortest} to {longest}",
            "take 3, which stops most loops",
        )
    return int(number)


def _probability_share(value: object) -> float:
    number = finite_number(MIN_P, value)
    if not 0 <= number <= 1:
        raise refusal(
            MIN_P,
            value,
            "0 for off, or a share of the best candidate's probability, at most 1",
            "take 0.15, which keeps guidance from raising unlikely tokens",
        )
    return number


def _boolean(what: str, value: object) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false", "0", "1"):
        raise refusal(what, value, "true or false", "leave it out for false")
    return text in ("true", "1")


def _in_adapter_order(weights: NamedWeights, dimensions: tuple[str, ...]) -> tuple[float, ...]:
    """One weight per dimension of the adapter. Raises ValueError for a name that it does not have."""
    for name, _ in weights:
        if not dimensions:
            raise ValueError(
                f"{WEIGHTS} names {short_repr(name)}, and this server has no adapter; accepted: "
                f"{PREFERENCE}, a sentence. Say it in words, or serve an adapter."
            )
        if name not in dimensions:
            raise ValueError(
                f"{WEIGHTS} names {short_repr(name)}, which this adapter does not have."
                f"{did_you_mean(name, dimensions)} Accepted dimensions: {listed(dimensions)}. "
                "Use these names (case matters), or serve an adapter trained on yours."
            )
    by_name = dict(weights)
    return tuple(by_name.get(name, 0.0) for name in dimensions)
