"""The answers that lessons are about: of each prompt one as the base gives it, one told one of the wishes.

In: prompts of sampling/sample_responses.py. Out: its JSONL of Records, two responses each, resumed as it
is. The told ones lead where guided decoding will lead: there the rewards have to be right too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pad_vllm.serving.launch import offline_engine
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.data.conversation import Conversation
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

_ROOM = 64
"""Tokens that a template may put around a wish, beside the wish's own."""


@dataclass(frozen=True)
class InstructedBuild:
    """A Build: `inner`'s engine, which answers each conversation twice, plain and told a sentence."""

    sentences: tuple[str, ...]
    inner: EngineBuilder = build_vllm_engine

    def __call__(self, base: str, sampling: SamplingOptions) -> tuple[ChatEngine, Any]:
        longest = max(len(one.encode()) for one in self.sentences)  # no token is less than a byte
        room = sampling.max_model_len + longest + _ROOM
        engine, params = self.inner(base, replace(sampling, n=1, max_model_len=room))
        return _InstructedEngine(engine, self.sentences), params


class _InstructedEngine:
    """The Engine of Told."""

    def __init__(self, engine: ChatEngine, sentences: Sequence[str]) -> None:
        self.engine, self.sentences = engine, sentences

    def get_tokenizer(self) -> Any:
        return self.engine.get_tokenizer()

    def chat(
        self, messages: list[Messages], sampling_params: Any, **named: Any
    ) -> list[ChatResult]:
        told = [with_instruction(one, self._sentence(one)) for one in messages]
        drawn = self.engine.chat([*messages, *told], sampling_params, **named)
        halves = drawn[: len(messages)], drawn[len(messages) :]
        return [
            ChatResult([*plain.outputs[:1], *other.outputs[:1]])
            for plain, other in zip(*halves, strict=True)
        ]

    def _sentence(self, messages: Messages) -> str:
        """By the conversation alone, so that a run that goes on asks for the same."""
        place = unit_hash(json.dumps(messages, ensure_ascii=False))
        return self.sentences[int(place * len(self.sentences))]


def draw_in_subprocess(
    base: str,
    prompts: Sequence[Conversation],
    out: Path,
    sampling: SamplingOptions,
    build: EngineBuilder,
) -> SamplingCounts:
    """`draw` in a process of its own, so that the engine's memory is free before training starts."""
    if not remaining_prompts(prompts, out):
        return SamplingCounts(already_done=len(prompts))
    return offline_engine.run_in_subprocess(
        sample_responses, base, prompts, out, sampling, build=build
    )
