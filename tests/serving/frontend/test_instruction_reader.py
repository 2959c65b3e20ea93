"""Instructions in the front end: their length, how many there may be at once, what workers are told."""

from __future__ import annotations

import gc
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny

from pad_vllm.argument_names import INSTRUCTION_KEY
from pad_vllm.engines.shared.instruction_stream import InstructionLimits
from pad_vllm.instruction import LearnedInstruction
from pad_vllm.params import parse_guidance
from pad_vllm.request_limits import InstructionDefaults, RequestLimits
from pad_vllm.serving.frontend.instruction_reader import InstructionReader
from pad_vllm.text.instruction_tokens import instruction_tokens

LIMITS = RequestLimits((), 1.5, 20, 10, 100, instructions=InstructionDefaults())
NAMED = RequestLimits(("a",), 1.0, 10, 10, 100, worker_key="work#1")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture
def reader(tokenizer):
    """A function that makes one."""

    def make(max_instructions=2, max_tokens=64, **parallel):
        return InstructionReader(
            tokenizer,
            InstructionLimits(max_instructions, max_tokens),
            SimpleNamespace(**parallel),
        )

    return make


def test_the_workers_are_told_its_tokens(reader, tokenizer):
    admitted = reader().admit("be kind", LIMITS)
    tokens = instruction_tokens(tokenizer, "be kind")
    assert admitted.worker_arguments == {INSTRUCTION_KEY: tokens}
    assert all(type(token) is int for part in tokens for token in part)
    assert (
        parse_guidance(
            {"pad_preference": "be kind", **admitted.worker_arguments}, LIMITS
        ).instruction
        == tokens
    )


def test_beside_the_tokens_they_are_told_the_adapter(reader):
    admitted = reader().admit("be kind", NAMED)
    assert admitted.limits is NAMED
    assert admitted.worker_arguments == {
        "pad_adapter": "work#1",
        INSTRUCTION_KEY: admitted.in_flight.instruction,
    }


def test_one_that_just_fits_is_admitted_and_one_token_more_is_refused(reader, tokenizer):
    tokens = instruction_tokens(tokenizer, "be kind")
    places, own = tokens.num_places, len(tokens.sentence)
    reader(max_tokens=places).admit("be kind", LIMITS)
    with pytest.raises(ValueError, match=rf"'be kind'.*at most {places - 1}; this one has {own} "):
        reader(max_tokens=places - 1).admit("be kind", LIMITS)


def test_one_that_is_too_long_takes_no_place(reader):
    full = reader(max_instructions=1)
    for _ in range(3):
        with pytest.raises(ValueError, match="max_instruction_tokens"):
            full.admit("be kind " * 20, LIMITS)
    held = full.admit("be kind", LIMITS)
    assert held


def test_what_is_refused_is_not_kept(reader):
    made = reader()
    for number in range(3):
        with pytest.raises(ValueError, match="max_instruction_tokens"):
            made.admit(f"{number} be kind " * 20, LIMITS)
    assert made._read.cache_info().currsize == 0
    made.admit("be kind", LIMITS)
    assert made._read.cache_info().currsize == 1


def test_more_than_there_are_places_for_are_refused_with_the_setting_that_allows_them(reader):
    full = reader()
    held = [full.admit(sentence, LIMITS) for sentence in ("be kind", "be brief")]
    with pytest.raises(ValueError, match="pad_preference is 'be odd'; .*the 2 .*max_instructions"):
        full.admit("be odd", LIMITS)
    assert len(held) == 2


def test_one_sentence_takes_one_place_however_many_requests_have_it(reader):
    full = reader()
    held = [full.admit("be kind", LIMITS) for _ in range(5)]
    assert len({id(one.in_flight) for one in held}) == 1
    held.append(full.admit("be brief", LIMITS))
    with pytest.raises(ValueError, match="being answered"):
        full.admit("be odd", LIMITS)


def test_a_place_is_free_when_the_last_request_that_has_it_is_gone(reader):
    full = reader(max_instructions=1)
    first, second = full.admit("be kind", LIMITS), full.admit("be kind", LIMITS)
    del first
    gc.collect()
    with pytest.raises(ValueError, match="being answered"):
        full.admit("be odd", LIMITS)
    del second
    gc.collect()
    held = full.admit("be odd", LIMITS)
    with pytest.raises(ValueError, match="being answered"):
        full.admit("be kind", LIMITS)
    assert held


def test_what_only_keeps_the_arguments_for_the_workers_holds_no_place(reader):
    full = reader(max_instructions=1)
    told = full.admit("be kind", LIMITS).worker_arguments
    gc.collect()
    held = full.admit("be odd", LIMITS)
    assert held.worker_arguments != told


@pytest.mark.parametrize(
    ("parallel", "places"),
    [
        ({}, 6),
        ({"_api_process_count": 1}, 6),
        ({"_api_process_count": None}, 6),
        ({"_api_process_count": 2}, 3),
        ({"_api_process_count": 4}, 1),
    ],
)
def test_front_ends_share_what_the_server_keeps(reader, parallel, places):
    shared = reader(max_instructions=6, **parallel)
    held = [shared.admit(f"be {number}", LIMITS) for number in range(places)]
    with pytest.raises(ValueError, match=f"one of the {places} different instructions"):
        shared.admit("be odd", LIMITS)
    assert len(held) == places


def test_fewer_instructions_than_front_ends_are_refused(reader):
    with pytest.raises(ValueError, match="is 3 for 4 API servers.*Raise it, or lower"):
        reader(max_instructions=3, _api_process_count=4)


def test_a_sentence_is_tokenised_once(tokenizer):
    sentences = []

    class Counting:
        chat_template = None

        def __call__(self, text, **options):
            sentences.append(text)
            return tokenizer(text, **options)

    reader = InstructionReader(Counting(), InstructionLimits(9, 64), SimpleNamespace())
    for sentence in ("be kind", "be odd", "be kind"):
        reader.admit(sentence, LIMITS)
    assert sentences == ["be kind", "", "be odd", ""]


def test_what_the_chat_template_does_not_render_is_refused(tokenizer):
    class Silent:
        chat_template = "x"

        def apply_chat_template(self, messages, **options):
            return "x"

    reader = InstructionReader(Silent(), InstructionLimits(9, 64), SimpleNamespace())
    with pytest.raises(ValueError, match="renders no user's turn"):
        reader.admit("be kind", LIMITS)


def test_the_name_of_a_learned_prefix_stands_for_it_and_takes_a_place(reader):
    learned = LearnedInstruction("0" * 64, 32)
    limits = replace(
        NAMED, instructions=InstructionDefaults(), prefixes={"warm": learned}, loop_price=0.25
    )
    admitting = reader(max_instructions=1)
    admitted = admitting.admit("warm", limits)
    arguments = {"pad_preference": "warm", **admitted.worker_arguments}
    assert arguments["pad_adapter"] == "work#1"
    on_the_wire = {**arguments, INSTRUCTION_KEY: list(arguments[INSTRUCTION_KEY])}
    del on_the_wire["pad_adapter"]
    guidance = parse_guidance(on_the_wire, limits)
    assert guidance.instruction == learned
    assert (guidance.beta, guidance.min_p, guidance.no_repeat) == (1.5, 0.0, 3)
    assert guidance.loop_price == 0.25  # its adapter's
    with_weights = parse_guidance({**on_the_wire, "pad_weights": "a=1"}, limits)
    assert (with_weights.beta, with_weights.min_p) == (2.0, 0.03)
    sentence = parse_guidance({"pad_preference": "be warm"}, limits)
    assert (sentence.beta, sentence.min_p, sentence.loop_price) == (2.0, 0.03, 0.0)
    asked = parse_guidance({**on_the_wire, "pad_beta": -3, "pad_min_p": 0.1}, limits)
    assert (asked.beta, asked.min_p) == (-3, 0.1)
    with pytest.raises(ValueError, match="one of the 1 different instructions"):
        admitting.admit("be warm", limits)
