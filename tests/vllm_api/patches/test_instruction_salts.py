"""The prefix cache's key of a request with an instruction; what only PAD itself may say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

from vllm.exceptions import VLLMValidationError

from pad_vllm.argument_names import INSTRUCTION_KEY
from pad_vllm.instruction import InstructionTokens, LearnedInstruction
from pad_vllm.vllm_api.patches import front_end_checks
from pad_vllm.vllm_api.vllm_names import SamplingParams


def salt(tokens=None, own=None):
    """Of the request that a front end makes."""
    extra_args = {} if tokens is None else {INSTRUCTION_KEY: tokens}
    request = SimpleNamespace(sampling_params=SamplingParams(extra_args=extra_args), cache_salt=own)
    processor = SimpleNamespace(process_inputs=lambda: request)
    front_end_checks._wrap_request_maker(processor)
    return processor.process_inputs().cache_salt


def test_one_instruction_has_one_salt_and_each_its_own():
    one = InstructionTokens((1,), (3, 4))
    assert salt(one) == salt([[1], [3, 4]])
    others = [((1,), (3, 4, 4)), ((1,), (34,)), ((1, 3), (4,)), ((), (1, 3, 4))]
    assert len({salt(one), salt(one, "a"), salt(), *map(salt, others)}) == 7


def test_each_learned_prefix_has_a_salt_of_its_own():
    one, other = LearnedInstruction("0" * 64, 32), LearnedInstruction("1" * 64, 32)
    assert salt(one) == salt(list(one))
    assert len({salt(one), salt(other), salt()}) == 3


def test_a_request_without_an_instruction_shares_blocks_with_plain_ones():
    assert salt() is None


def test_no_salt_of_a_clients_is_that_of_an_instruction():
    of_instruction = salt(InstructionTokens((1,), (3, 4)))
    for own in (of_instruction, of_instruction.partition(":")[2], ""):
        assert salt(own=own) != of_instruction


def test_a_client_cannot_say_the_tokens_itself():
    params = SamplingParams(extra_args={INSTRUCTION_KEY: 5})
    with pytest.raises(VLLMValidationError, match="accepted from clients is pad_preference"):
        front_end_checks._admit(SimpleNamespace(), params, None)
