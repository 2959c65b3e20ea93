"""Instructions in the front end: a sentence becomes token ids, and those in flight are counted.

In: `pad_preference` of a request. Out: an InstructedRequest, which the front end holds until the request
ended, or a ValueError, which the client sees as HTTP 400. Workers keep as many instructions as the front ends
of a server admit at once, so that none has to wait there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

from pad_vllm.argument_names import INSTRUCTION_KEY, PREFERENCE
from pad_vllm.engines.shared.instruction_stream import InstructionLimits
from pad_vllm.instruction import Instruction, InstructionTokens
from pad_vllm.request_limits import RequestLimits
from pad_vllm.text.instruction_tokens import instruction_tokens
from pad_vllm.wording import refusal

_CACHED_SENTENCES = 4096


@dataclass(frozen=True)
class InFlightInstruction:
    """One instruction that requests in flight have. Freed with the last of them."""

    instruction: Instruction


@dataclass(frozen=True)
class InstructedRequest:
    """What guides a request with an instruction; see vllm_api.patches.outcome_rpc.RequestGuidance."""

    limits: RequestLimits
    in_flight: InFlightInstruction

    @property
    def worker_arguments(self) -> dict[str, Any]:
        """Request arguments that the workers read besides the client's."""
        return {**self.limits.worker_arguments, INSTRUCTION_KEY: self.in_flight.instruction}


class InstructionReader:
    """Makes token ids of the instructions of one front end's requests."""

    def __init__(self, tokenizer: Any, limits: InstructionLimits, parallel_config: Any) -> None:
        """Nothing is in flight.

        Args:
            tokenizer: of the base, with its chat template.
            limits: of the server.
            parallel_config: vLLM's; several front ends share what the server keeps.

        Raises:
            ValueError: there are fewer instructions than front ends.
        """
        num_front_ends = int(getattr(parallel_config, "_api_process_count", 1) or 1)
        self._max_in_flight = limits.max_instructions // num_front_ends
        if not self._max_in_flight:
            raise ValueError(
                f"additional_config['pad']['max_instructions'] is {limits.max_instructions} for "
                f"{num_front_ends} API servers, which share them; accepted: one for each at least. "
                "Raise it, or lower --api-server-count."
            )
        self._in_flight: WeakValueDictionary[Instruction, InFlightInstruction] = (
            WeakValueDictionary()
        )

        # One that is too long is not kept: its refusal leaves the cached function as an error.
        @lru_cache(_CACHED_SENTENCES)
        def read(sentence: str) -> InstructionTokens:
            tokens = instruction_tokens(tokenizer, sentence)
            _require_short(sentence, tokens, limits.max_tokens)
            return tokens

        self._read = read

    def admit(self, sentence: str, limits: RequestLimits) -> InstructedRequest:
        """The request with its instruction.

        Args:
            sentence: the value of pad_preference; the name of a learned prefix of the adapter means that.
            limits: of the adapter that the request names.

        Raises:
            ValueError: the sentence is too long, or too many different ones are in flight.
        """
        learned = limits.prefixes.get(sentence)
        instruction = self._read(sentence) if learned is None else learned
        in_flight = self._in_flight.get(instruction)
        if in_flight is None:
            if len(self._in_flight) >= self._max_in_flight:
                raise refusal(
                    PREFERENCE,
                    sentence,
                    f"one of the {self._max_in_flight} different instructions of requests that are being "
                    "answered",
                    "send it again when some have ended, or raise the server's max_instructions",
                )
            in_flight = self._in_flight[instruction] = InFlightInstruction(instruction)
        return InstructedRequest(limits, in_flight)


def _require_short(sentence: str, tokens: InstructionTokens, most: int) -> None:
    if tokens.num_places > most:
        raise refusal(
            PREFERENCE,
            sentence,
            f"an instruction whose tokens, twice, and with the chat template's before it, are at most "
            f"{most}; this one has {len(tokens.sentence)} and {len(tokens.opening)}",
            "shorten it, or raise the server's max_instruction_tokens",
        )
