"""Responses of a guided model, each with the arguments that guided it.

Used for choices between such responses (`pad-vllm fit`), and for training data from the texts that guidance
itself leads to. In: an adapter's folder, its dimensions, `pad_weights` or RANDOM_WEIGHTS. Out: an
EngineBuilder for vllm_sampler.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from pad_vllm.argument_names import BETA, WEIGHTS
from pad_vllm.serving.launch import offline_engine
from pad_vllm.training.data.preference_record import unit_hash
from pad_vllm.training.data.synthetic_preferences import draw_preferences
from pad_vllm.training.sampling.vllm_sampler import (
    ChatEngine,
    ChatResult,
    EngineBuilder,
    Messages,
    SamplingOptions,
    build_vllm_engine,
)

RANDOM_WEIGHTS = "random"
"""Instead of weights: new ones for every response, drawn as preferences are drawn for training."""


@dataclass(frozen=True)
class GuidedEngineBuilder:
    """An EngineBuilder: builds an engine that has the adapter, and sends a request for each response."""

    adapter: str
    """A folder."""

    dimensions: tuple[str, ...]
    weights: str = RANDOM_WEIGHTS
    """`pad_weights` of every response, or RANDOM_WEIGHTS."""

    beta: float | None = None
    """None: the adapter's own."""

    inner: EngineBuilder = build_vllm_engine
    """Builds the engine that samples."""

    def __call__(self, base: str, sampling: SamplingOptions) -> tuple[ChatEngine, Any]:
        """(the engine, the parameters that its `chat` takes)."""
        engine, params = self.inner(base, replace(sampling, n=1, adapter=self.adapter))
        return _GuidedEngine(engine, self, sampling), params

    def request_arguments(
        self, messages: Messages, sampling: SamplingOptions
    ) -> Iterator[dict[str, Any]]:
        """`pad_weights` and `pad_beta` of a request for each of the `sampling.n` responses.

        They depend on the conversation and the seed alone, so a run that goes on asks for the same.
        """
        beta = {} if self.beta is None else {BETA: self.beta}
        if self.weights != RANDOM_WEIGHTS:
            yield from [{WEIGHTS: self.weights, **beta}] * sampling.n
            return
        position = unit_hash(json.dumps([sampling.seed, messages], ensure_ascii=False))
        generator = torch.Generator().manual_seed(int(position * 2**32))
        for w in draw_preferences(sampling.n, len(self.dimensions), generator).tolist():
            pairs = zip(self.dimensions, w, strict=True)
            yield {WEIGHTS: ",".join(f"{name}={x:.2g}" for name, x in pairs if x), **beta}


class _GuidedEngine:
    """The ChatEngine of GuidedEngineBuilder."""

    def __init__(
        self, engine: ChatEngine, builder: GuidedEngineBuilder, sampling: SamplingOptions
    ) -> None:
        self.engine, self.builder, self.sampling = engine, builder, sampling

    def get_tokenizer(self) -> Any:
        return self.engine.get_tokenizer()

    def chat(
        self, messages: list[Messages], sampling_params: Any, **options: Any
    ) -> list[ChatResult]:
        requests = [
            (conversation, arguments)
            for conversation in messages
            for arguments in self.builder.request_arguments(conversation, self.sampling)
        ]
        results = self.engine.chat(
            [conversation for conversation, _ in requests],
            [offline_engine.with_pad_arguments(sampling_params, a) for _, a in requests],
            **options,
        )
        outputs = [
            _GuidedOutput(result.outputs[0].text, result.outputs[0].token_ids, arguments)
            for result, (_, arguments) in zip(results, requests, strict=True)
        ]
        n = self.sampling.n
        return [ChatResult(outputs[start : start + n]) for start in range(0, len(outputs), n)]


@dataclass(frozen=True)
class _GuidedOutput:
    """One response, as `ChatEngine.chat` returns it."""

    text: str
    token_ids: Any
    guided_by: dict[str, Any]
