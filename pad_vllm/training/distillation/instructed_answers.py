"""The answers that a distillation trains on: two for each prompt, plain and with an instruction in it.

In: prompts of sampling/sample_responses.py. Out: its JSONL of PreferenceRecords, two responses each; a
second call goes on where the first stopped. The instructed answers lead where guided decoding will lead:
there the rewards have to be right too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pad_vllm.serving.launch import offline_engine
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.data.preference_record import unit_hash
from pad_vllm.training.sampling.sample_responses import (
    SamplingCounts,
    remaining_prompts,
    sample_responses,
)
from pad_vllm.training.sampling.vllm_sampler import (
    ChatEngine,
    ChatResult,
    EngineBuilder,
    Messages,
    SamplingOptions,
    build_vllm_engine,
)

_TEMPLATE_TOKENS = 64
"""Tokens that a chat template may put around an instruction, beside the instruction's own."""


@dataclass(frozen=True)
class InstructedBuild:
    """An EngineBuilder whose engine answers each conversation twice: as it is, and with an instruction."""

    sentences: tuple[str, ...]
    """The instructions of all dimensions and opposites; a conversation gets one of them."""

    inner: EngineBuilder = build_vllm_engine
    """Builds the engine that draws both answers."""

    def __call__(self, base: str, sampling: SamplingOptions) -> tuple[ChatEngine, Any]:
        """Build the engine, with room in its context for the longest instruction."""
        # A token has at least one byte.
        longest = max(len(sentence.encode()) for sentence in self.sentences)
        max_model_len = sampling.max_model_len + longest + _TEMPLATE_TOKENS
        engine, params = self.inner(base, replace(sampling, n=1, max_model_len=max_model_len))
        return _InstructedEngine(engine, self.sentences), params


class _InstructedEngine:
    """The ChatEngine that InstructedBuild builds."""

    def __init__(self, engine: ChatEngine, sentences: Sequence[str]) -> None:
        self.engine, self.sentences = engine, sentences

    def get_tokenizer(self) -> Any:
        return self.engine.get_tokenizer()

    def chat(
        self, messages: list[Messages], sampling_params: Any, **options: Any
    ) -> list[ChatResult]:
        """For each conversation the plain and the instructed answer, drawn in one batch."""
        instructed = [with_instruction(turns, self._sentence(turns)) for turns in messages]
        results = self.engine.chat([*messages, *instructed], sampling_params, **options)
        pairs = zip(results[: len(messages)], results[len(messages) :], strict=True)
        return [ChatResult([*plain.outputs[:1], *other.outputs[:1]]) for plain, other in pairs]

    def _sentence(self, messages: Messages) -> str:
        """The conversation's instruction: a function of its text, so that a resumed run takes the same."""
        fraction = unit_hash(json.dumps(messages, ensure_ascii=False))
        return self.sentences[int(fraction * len(self.sentences))]


def draw_in_subprocess(
    base: str,
    prompts: Sequence[Conversation],
    out: Path,
    sampling: SamplingOptions,
    build: EngineBuilder,
) -> SamplingCounts:
    """`sample_responses` in a process of its own, whose memory is free before training starts.

    Args:
        base: The model: a folder or a name.
        prompts: Of `read_prompts`.
        out: JSONL to append to; prompts that it has are not drawn again.
        sampling: How answers are drawn.
        build: Builds the engine; must be picklable.

    Returns:
        How many prompts were drawn for.
    """
    if not remaining_prompts(prompts, out):
        return SamplingCounts(already_done=len(prompts))
    return offline_engine.run_in_subprocess(
        sample_responses, base, prompts, out, sampling, build=build
    )
