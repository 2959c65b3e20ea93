"""Per-request arguments: every spelling that is accepted, every one that is a 400, and fuzz."""

import dataclasses
import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pad_vllm.argument_names import INSTRUCTION_KEY
from pad_vllm.instruction import InstructionTokens
from pad_vllm.params import Guidance, check_argument_syntax, parse_guidance
from pad_vllm.request_limits import InstructionDefaults, RequestLimits
from pad_vllm.weights_syntax import MAX_WEIGHT

DIMENSIONS = ("helpful", "harmless", "humor")
LIMITS = RequestLimits(dimensions=DIMENSIONS, beta=1.0, top_k=10, max_beta=5.0, max_top_k=50)
DEFAULTS = InstructionDefaults()
INSTRUCTED = dataclasses.replace(LIMITS, no_repeat=5, min_p=0.05, instructions=DEFAULTS)


def refusal(extra_args, *, syntax: bool) -> str:
    """The refusal of `parse_guidance`; syntax: whether `check_argument_syntax` has to say the same."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is what is asserted
        parse_guidance(extra_args, LIMITS)
    if syntax:
        with pytest.raises(ValueError) as early:  # noqa: PT011, as above
            check_argument_syntax(extra_args)
        assert str(early.value) == str(caught.value)
    else:
        check_argument_syntax(extra_args)
    return str(caught.value)


@pytest.mark.parametrize(
    "extra_args", [None, {}, {"kv_transfer_params": {}}, {"padding": 1, "PAD_x": 2, 3: 4}]
)
def test_a_request_without_pad_arguments_is_left_alone(extra_args):
    check_argument_syntax(extra_args)
    assert parse_guidance(extra_args, LIMITS) is None


@pytest.mark.parametrize(
    "weights",
    [
        "humor=0.5,helpful=1",
        " helpful = 1 , humor = 5e-1 ",
        '{"helpful": 1, "humor": 0.5}',
        ' {" helpful ": "1", "humor": 0.5} ',
        ["helpful=1", "humor=.5"],
        ("helpful=1.0", " humor =+0.5"),
        {"helpful": 1, "humor": 0.5},
    ],
)
def test_every_spelling_of_weights_means_the_same_in_the_adapters_order(weights):
    check_argument_syntax({"pad_weights": weights})
    assert parse_guidance({"pad_weights": weights}, LIMITS) == Guidance((1.0, 0.0, 0.5), 1.0, 10)


def test_all_zero_weights_are_guidance_that_only_truncates():
    assert parse_guidance({"pad_weights": "humor=0"}, LIMITS) == Guidance((0.0, 0.0, 0.0), 1.0, 10)


def test_weights_and_beta_may_be_negative():
    guidance = parse_guidance({"pad_weights": "humor=-2", "pad_beta": -5}, LIMITS)
    assert guidance == Guidance((0.0, 0.0, -2.0), -5.0, 10)


@pytest.mark.parametrize("beta", [2, 2.0, "2", " 2.0 ", "2e0"])
def test_beta_is_a_number_or_text_that_is_one(beta):
    assert parse_guidance({"pad_weights": "humor=1", "pad_beta": beta}, LIMITS).beta == 2.0


@pytest.mark.parametrize("length", [0, 2, 3.0, "8"])
def test_a_loops_length_is_zero_or_that_of_an_n_gram(length):
    guidance = parse_guidance({"pad_weights": "humor=1", "pad_no_repeat": length}, LIMITS)
    assert guidance.no_repeat == int(float(length))


@pytest.mark.parametrize("length", [1, 9, -3, 2.5, "three", True])
def test_any_other_length_is_refused_with_what_is_accepted(length):
    message = refusal({"pad_weights": "humor=1", "pad_no_repeat": length}, syntax=True)
    assert "pad_no_repeat is" in message
    if not isinstance(length, str | bool):
        assert "0 for off, or an n-gram's length from 2 to 8" in message


@pytest.mark.parametrize("share", [0, 0.05, "0.2", 1])
def test_unlikely_is_below_a_share_of_the_best(share):
    assert parse_guidance({"pad_weights": "humor=1", "pad_min_p": share}, LIMITS).min_p == float(
        share
    )


@pytest.mark.parametrize("share", [-0.1, 1.5, "nan", "some", True])
def test_any_other_share_is_refused_with_what_is_accepted(share):
    message = refusal({"pad_weights": "humor=1", "pad_min_p": share}, syntax=True)
    assert "pad_min_p is" in message
    if isinstance(share, float):
        assert "0 for off, or a share of the best candidate's probability" in message


@pytest.mark.parametrize("price", [0, 0.5, "1", 10])
def test_a_loops_price_is_in_logits(price):
    guidance = parse_guidance({"pad_weights": "humor=1", "pad_loop_price": price}, LIMITS)
    assert guidance.loop_price == float(price)
    assert parse_guidance({"pad_weights": "humor=1"}, LIMITS).loop_price == 0.0


@pytest.mark.parametrize("price", [-0.1, 10.5, "nan", "some", True])
def test_any_other_price_is_refused_with_what_is_accepted(price):
    message = refusal({"pad_weights": "humor=1", "pad_loop_price": price}, syntax=True)
    assert "pad_loop_price is" in message
    if isinstance(price, float):
        assert "logits from 0 (off) to 10" in message


def test_a_request_names_one_of_several_adapters_whose_names_and_defaults_then_hold():
    work = RequestLimits(("formal",), 0.5, 10, 10, 100, first_dimension=3, worker_key="work#1")
    limits = dataclasses.replace(LIMITS, other_adapters={"work": work})
    asked = parse_guidance({"pad_weights": "formal=2", "pad_adapter": "work"}, limits)
    assert (asked.weights, asked.beta, asked.top_k) == ((0.0, 0.0, 0.0, 2.0), 0.5, 10)
    assert len(parse_guidance({"pad_weights": "humor=1"}, limits).weights) == 3
    assert limits.for_adapter("work").worker_arguments == {"pad_adapter": "work#1"}
    assert limits.for_adapter(None).worker_arguments == {}
    for args, said in (
        ({"pad_weights": "humor=1", "pad_adapter": "work"}, "Accepted dimensions: formal"),
        ({"pad_weights": "formal=1", "pad_adapter": "play"}, "'play'; accepted: work"),
        ({"pad_weights": "formal=1", "pad_adapter": 3}, "the name of an adapter"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_guidance(args, limits)
    with pytest.raises(ValueError, match="one adapter is served"):
        parse_guidance({"pad_weights": "humor=1", "pad_adapter": "work"}, LIMITS)


@pytest.mark.parametrize("value", [True, 1, "true", "1"])
def test_an_answer_may_be_explained(value):
    assert parse_guidance({"pad_weights": "humor=1", "pad_explain": value}, LIMITS).explain
    assert not parse_guidance({"pad_weights": "humor=1", "pad_explain": not value}, LIMITS).explain


@pytest.mark.parametrize("value", ["yes", 2, "", []])
def test_another_word_for_it_is_refused(value):
    said = refusal({"pad_weights": "humor=1", "pad_explain": value}, syntax=True)
    assert "accepted: true or false" in said


def test_without_guards_of_its_own_a_request_has_the_adapters():
    limits = dataclasses.replace(LIMITS, no_repeat=3, min_p=0.05, loop_price=0.25)
    guarded = parse_guidance({"pad_weights": "humor=1"}, limits)
    assert (guarded.no_repeat, guarded.min_p, guarded.loop_price) == (3, 0.05, 0.25)
    off = {"pad_no_repeat": 0, "pad_min_p": 0, "pad_loop_price": 0}
    free = parse_guidance({"pad_weights": "humor=1", **off}, limits)
    assert (free.no_repeat, free.min_p, free.loop_price) == (0, 0.0, 0.0)


@pytest.mark.parametrize("top_k", [50, 50.0, "50", "50.0", "5e1"])
def test_top_k_is_a_whole_number_however_it_is_written(top_k):
    guidance = parse_guidance({"pad_weights": "humor=1", "pad_top_k": top_k}, LIMITS)
    assert guidance.top_k == 50
    assert type(guidance.top_k) is int


def test_the_numbers_are_floats_whatever_the_json_held():
    guidance = parse_guidance({"pad_weights": '{"humor": 1}', "pad_beta": 1}, LIMITS)
    assert {type(number) for number in (*guidance.weights, guidance.beta)} == {float}


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("pad_weight", "pad_weights"),
        ("pad_topk", "pad_top_k"),
        ("pad_Beta", "pad_beta"),
        ("pad_prefrence", "pad_preference"),
    ],
)
def test_a_typo_is_refused_and_all_arguments_are_named(key, meant):
    message = refusal({key: 1}, syntax=True)
    assert f"'{key}'" in message
    assert f"Did you mean '{meant}'?" in message
    assert (
        "pad_weights, pad_beta, pad_top_k, pad_no_repeat, pad_min_p, pad_loop_price, pad_preference, "
        "pad_explain, pad_adapter" in message
    )


@pytest.mark.parametrize(
    "extra", [{"pad_beta": 1}, {"pad_top_k": 5}, {"pad_beta": 1, "pad_top_k": 5}]
)
def test_strength_without_weights_is_refused_because_it_would_guide_nowhere(extra):
    message = refusal(extra, syntax=True)
    assert "without pad_weights" in message
    assert all(name in message for name in extra)
    assert "helpful=1" in message


@pytest.mark.parametrize("name", ["pad_weights", "pad_beta", "pad_top_k", "pad_preference"])
def test_null_is_refused_rather_than_taken_for_absent(name):
    message = refusal({"pad_weights": "humor=1", name: None}, syntax=True)
    assert f"{name} is None" in message
    assert "leave the argument out" in message


def test_preference_text_goes_with_weights_to_an_engine_with_a_prompt_of_its_own():
    limits = dataclasses.replace(LIMITS, engine="resident")
    found = parse_guidance(
        {"pad_weights": "humor=1", "pad_preference": " formal but humorous "}, limits
    )
    assert found.preference == "formal but humorous"
    assert parse_guidance({"pad_weights": "humor=1"}, limits).preference == ""


@pytest.mark.parametrize("value", ["", "  ", 3, ["formal"], "x" * 2001])
def test_a_preference_that_is_no_text_or_too_long_is_refused(value):
    message = refusal({"pad_weights": "humor=1", "pad_preference": value}, syntax=True)
    assert "pad_preference is " in message
    assert "1 to 2000 characters" in message


def test_preference_text_is_refused_on_shared_with_what_to_do_instead():
    message = refusal(
        {"pad_weights": "humor=1", "pad_preference": "formal but humorous"}, syntax=False
    )
    assert "'formal but humorous'" in message
    assert "'shared'" in message
    assert "your own prompt" in message
    assert "pad_weights" in message


def test_where_instructions_are_read_a_preference_guides_alone_with_defaults_of_its_own():
    asked = {"pad_preference": " be kind ", INSTRUCTION_KEY: [[4], [5, 6]]}
    check_argument_syntax(asked)
    assert parse_guidance(asked, INSTRUCTED) == Guidance(
        (0.0, 0.0, 0.0),
        DEFAULTS.beta,
        DEFAULTS.top_k,
        preference="be kind",
        instruction=InstructionTokens((4,), (5, 6)),
        no_repeat=DEFAULTS.no_repeat,
        min_p=DEFAULTS.min_p,
    )


def test_there_weights_alone_have_the_adapters_defaults():
    found = parse_guidance({"pad_weights": "humor=1"}, INSTRUCTED)
    assert found == Guidance((0.0, 0.0, 1.0), 1.0, 10, no_repeat=5, min_p=0.05)


def test_there_weights_and_a_preference_stand_side_by_side():
    found = parse_guidance({"pad_weights": "humor=2", "pad_preference": "be kind"}, INSTRUCTED)
    assert (found.weights, found.preference) == ((0.0, 0.0, 2.0), "be kind")
    assert (found.beta, found.top_k) == (DEFAULTS.beta, DEFAULTS.top_k)
    assert (found.no_repeat, found.min_p) == (DEFAULTS.no_repeat, DEFAULTS.min_p)


def test_what_a_request_with_a_preference_says_itself_holds():
    found = parse_guidance(
        {
            "pad_preference": "be kind",
            "pad_beta": -2,
            "pad_top_k": 7,
            "pad_no_repeat": 0,
            "pad_min_p": 0.3,
            "pad_explain": True,
        },
        INSTRUCTED,
    )
    assert (found.beta, found.top_k, found.no_repeat, found.min_p) == (-2.0, 7, 0, 0.3)
    assert found.explain
    with pytest.raises(ValueError, match="pad_beta is -6.0; accepted: -5 to 5"):
        parse_guidance({"pad_preference": "be kind", "pad_beta": -6}, INSTRUCTED)
    with pytest.raises(ValueError, match="pad_top_k is 51"):
        parse_guidance({"pad_preference": "be kind", "pad_top_k": 51}, INSTRUCTED)


def test_a_server_without_an_adapter_has_no_dimension_to_weigh():
    limits = RequestLimits((), 1.5, 20, 5.0, 50, instructions=DEFAULTS)
    assert parse_guidance({"pad_preference": "be kind"}, limits).weights == ()
    with pytest.raises(ValueError, match="'humor', and this server has no adapter"):
        parse_guidance({"pad_weights": "humor=1"}, limits)


def test_a_preference_alone_is_refused_where_no_instructions_are_read():
    message = refusal({"pad_preference": "be kind"}, syntax=False)
    assert "'be kind'" in message
    assert "'shared'" in message
    resident = dataclasses.replace(LIMITS, engine="resident")
    with pytest.raises(ValueError, match="pad_preference given without pad_weights"):
        parse_guidance({"pad_preference": "be kind"}, resident)


def test_strength_alone_guides_nowhere_there_either():
    with pytest.raises(ValueError, match="pad_beta given without pad_weights"):
        parse_guidance({"pad_beta": 1}, INSTRUCTED)


def test_a_named_adapter_may_take_a_preference_too():
    work = RequestLimits(("formal",), 0.5, 10, 10, 100, first_dimension=3, instructions=DEFAULTS)
    limits = dataclasses.replace(INSTRUCTED, other_adapters={"work": work})
    found = parse_guidance({"pad_preference": "be kind", "pad_adapter": "work"}, limits)
    assert (found.weights, found.beta) == ((0.0,) * 4, DEFAULTS.beta)


@pytest.mark.parametrize(
    "name", ["Pad_Weights", "pad-weights", "padweights", "PAD_WEIGHTS", "pad", "PAD", "padBeta"]
)
def test_a_key_that_is_meant_for_pad_is_refused_with_the_names_that_are_known(name):
    with pytest.raises(ValueError, match=f"unknown request argument '{name}'.*pad_weights"):
        parse_guidance({name: "humor=1"}, INSTRUCTED)


@pytest.mark.parametrize("name", ["padding", "pads", "weights", "padd_weights", 5])
def test_other_keys_are_left_alone(name):
    assert parse_guidance({name: "humor=1"}, INSTRUCTED) is None


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        ([[1], [5, 6]], ((1,), (5, 6))),
        (InstructionTokens((1,), (5, 6)), ((1,), (5, 6))),
        ([[], [5]], ((), (5,))),
        *[(value, None) for value in ([[5], []], [5, 6], [[5]], "56", 5, None)],
    ],
)
def test_its_tokens_are_read_beside_a_preference_only(value, tokens):
    asked = {"pad_preference": "be kind", INSTRUCTION_KEY: value}
    assert parse_guidance(asked, INSTRUCTED).instruction == tokens
    weighed = {"pad_weights": "humor=1", INSTRUCTION_KEY: value}
    assert parse_guidance(weighed, INSTRUCTED).instruction is None
    assert parse_guidance({INSTRUCTION_KEY: value}, INSTRUCTED) is None
    check_argument_syntax({INSTRUCTION_KEY: value})


@pytest.mark.parametrize(
    "weights",
    [
        "",
        "  ",
        "{}",
        [],
        {},
        "helpful",
        "helpful:1",
        "helpful=1,",
        ",helpful=1",
        "helpful=1;humor=2",
        "=1",
        '{"": 1}',
        "helpful=",
        "helpful=one",
        "helpful=1=2",
        "helpful=1_0",
        "helpful=nan",
        "helpful=inf",
        "helpful=-Infinity",
        "helpful=1e999",
        "helpful=1e5",
        "helpful=-10001",
        "helpful=1,helpful=2",
        "helpful=1, helpful =2",
        '{"helpful": 1, "helpful": 2}',
        '{"helpful": true}',
        '{"helpful": null}',
        '{"helpful": NaN}',
        '{"helpful": [1]}',
        '{"helpful": {"a": 1}}',
        '{"helpful": 1',
        pytest.param('{"helpful": ' + "9" * 5000 + "}", id="5000 digits"),
        pytest.param('{"a":' * 100_000, id="100000 brackets"),
        '[["helpful", 1]]',
        ["helpful"],
        ["helpful=1,humor=1"],
        [1.0],
        [True],
        1,
        0.5,
        True,
        {"helpful": True},
        {"helpful": 10**400},
        {1: 2},
    ],
)
def test_malformed_weights_are_refused_before_the_adapter_is_known(weights):
    message = refusal({"pad_weights": weights}, syntax=True)
    assert "pad_weights" in message
    assert "accepted: " in message
    assert "Way out: " in message
    assert len(message) < 1_500


def test_a_weight_beyond_float32s_comfort_says_why():
    assert "finite in float32" in refusal({"pad_weights": f"humor={MAX_WEIGHT * 2}"}, syntax=True)
    assert parse_guidance({"pad_weights": f"humor={MAX_WEIGHT}"}, LIMITS).weights[2] == MAX_WEIGHT


@pytest.mark.parametrize("name", ["Helpful", "humour", "expert"])
def test_an_unknown_dimension_is_refused_naming_those_the_adapter_has(name):
    message = refusal({"pad_weights": f"helpful=1,{name}=1"}, syntax=False)
    assert f"'{name}'" in message
    assert "helpful, harmless, humor" in message


def test_an_almost_right_dimension_gets_the_right_one():
    assert "Did you mean 'humor'?" in refusal({"pad_weights": "humour=1"}, syntax=False)


@pytest.mark.parametrize(
    "beta", [True, "", "high", [1], {}, math.nan, math.inf, "nan", "1e999", 10**400, "1_0"]
)
def test_a_beta_that_is_no_finite_number_is_refused(beta):
    message = refusal({"pad_weights": "humor=1", "pad_beta": beta}, syntax=True)
    assert "pad_beta is " in message
    assert "finite number" in message


@pytest.mark.parametrize("beta", [5.1, -5.1, "1e4"])
def test_a_beta_beyond_the_limit_is_refused_naming_the_limit(beta):
    message = refusal({"pad_weights": "humor=1", "pad_beta": beta}, syntax=False)
    assert "-5 to 5" in message
    assert "max_beta" in message


@pytest.mark.parametrize("top_k", [0, -1, 10.5, "10.5", True, "many", [10], math.nan, math.inf])
def test_a_top_k_that_is_no_count_is_refused(top_k):
    assert "pad_top_k is " in refusal({"pad_weights": "humor=1", "pad_top_k": top_k}, syntax=True)


@pytest.mark.parametrize("top_k", [51, "1e300"])
def test_a_top_k_beyond_the_limit_is_refused_naming_the_limit(top_k):
    message = refusal({"pad_weights": "humor=1", "pad_top_k": top_k}, syntax=False)
    assert "1 to 50" in message
    assert "max_top_k" in message


@pytest.mark.parametrize(("beta", "top_k", "name"), [(-6.0, 10, "beta"), (1.0, 51, "top_k")])
def test_an_adapter_whose_defaults_break_the_engines_limits_never_starts(beta, top_k, name):
    with pytest.raises(ValueError, match=f"default {name}.*max_{name}"):
        RequestLimits(DIMENSIONS, beta, top_k, max_beta=5.0, max_top_k=50)


numbers = st.floats(-MAX_WEIGHT, MAX_WEIGHT)
weightings = st.dictionaries(st.sampled_from(DIMENSIONS), numbers, min_size=1)


@given(weightings)
def test_any_weighting_survives_every_spelling(named):
    expected = tuple(named.get(name, 0.0) for name in DIMENSIONS)
    pairs = [f"{name}={value!r}" for name, value in named.items()]
    for spelled in (",".join(pairs), pairs, json.dumps(named)):
        assert parse_guidance({"pad_weights": spelled}, LIMITS).weights == expected


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.sampled_from(["pad_weights", "pad_beta", "pad_top_k", "pad_x"]) | st.text()


@given(st.dictionaries(keys, scalars | st.lists(scalars)))
def test_whatever_a_client_sends_is_guidance_within_limits_or_a_value_error(extra_args):
    try:
        guidance = parse_guidance(extra_args, LIMITS)
    except ValueError:
        return
    check_argument_syntax(extra_args)
    if guidance is None:
        assert not any(key.startswith("pad_") for key in extra_args)
        return
    assert len(guidance.weights) == len(DIMENSIONS)
    assert all(abs(weight) <= MAX_WEIGHT for weight in guidance.weights)
    assert abs(guidance.beta) <= LIMITS.max_beta
    assert 1 <= guidance.top_k <= LIMITS.max_top_k


@pytest.mark.parametrize(
    "weights",
    [
        "helpful=1," * 1_000_000,
        '{"helpful": 1' + " " * 10_000_000 + "}",
        ["helpful=1"] * 1_000_000,
        ["helpful=" + "1" * 10_000_000],
        {str(number): 1 for number in range(100_000)},
    ],
    ids=["text", "json", "list", "one long item", "mapping"],
)
def test_megabytes_of_weights_are_refused_before_they_are_parsed(weights):
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="at most 10,000 characters"):
        check_argument_syntax({"pad_weights": weights})
    assert time.perf_counter() - begin < 0.5


@pytest.mark.parametrize("name", ["pad_beta", "pad_top_k"])
def test_a_number_of_megabytes_is_refused_unread(name):
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=f"{name} is .*; accepted: "):
        check_argument_syntax({"pad_weights": "helpful=1", name: "1" * 10_000_000})
    assert time.perf_counter() - begin < 0.5
