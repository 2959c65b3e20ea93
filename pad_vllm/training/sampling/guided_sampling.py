"""Responses of a guided model, each with what guided it: for choices between them (`pad-vllm fit`), and for
data from where guidance itself leads.

In: an adapter's folder, its dimensions, `pad_weights` or RANDOM. Out: a Build for sampling/vllm_sampler.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pad_vllm.params import BETA, WEIGHTS
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
"""Instead of weights: other ones for every response, as preferences are drawn for training."""


@dataclass(frozen=True)
class GuidedEngineBuilder:
    """A Build: `inner`'s engine with the adapter, which is asked for each response apart."""

    adapter: str  # a folder
    dimensions: tuple[str, ...]
    weights: str = RANDOM_WEIGHTS
    beta: float | None = None
    """None is the adapter's own."""

    inner: EngineBuilder = build_vllm_engine

    def __call__(self, base: str, sampling: SamplingOptions) -> tuple[ChatEngine, Any]:
        engine, params = self.inner(base, replace(sampling, n=1, adapter=self.adapter))
        return _GuidedEngine(engine, self, sampling), params

    def request_arguments(
        self, messages: Messages, sampling: SamplingOptions
    ) -> Iterator[dict[str, Any]]:
        """Of a request for each of the responses to a conversation.

        By that and the seed alone, so that a run that goes on asks for the same.
        """
        beta = {} if self.beta is None else {BETA: self.beta}
        if self.weights != RANDOM_WEIGHTS:
            yield from [{WEIGHTS: self.weights, **beta}] * sampling.n
            return
        place = unit_hash(json.dumps([sampling.seed, messages], ensure_ascii=False))
        source = torch.Generator().manual_seed(int(place * 2**32))
        for w in draw_preferences(sampling.n, len(self.dimensions), source).tolist():
            pairs = zip(self.dimensions, w, strict=True)
            yield {WEIGHTS: ",".join(f"{name}={x:.2g}" for name, x in pairs if x), **beta}


class _GuidedEngine:
    """The Engine of Guided."""

    def __init__(
        self, engine: ChatEngine, guided: GuidedEngineBuilder, sampling: SamplingOptions
    ) -> None:
        self.engine, self.count = engine, sampling.n
        self.arguments = partial(guided.request_arguments, sampling=sampling)

    def get_tokenizer(self) -> Any:
        return self.engine.get_tokenizer()

    def chat(
        self, messages: list[Messages], sampling_params: Any, **named: Any
    ) -> list[ChatResult]:
        asked = [(one, given) for one in messages for given in self.arguments(one)]
        params = [offline_engine.with_pad_arguments(sampling_params, given) for _, given in asked]
        drawn = self.engine.chat([one for one, _ in asked], params, **named)
        outputs = [
            _GuidedOutput(result.outputs[0].text, result.outputs[0].token_ids, given)
            for result, (_, given) in zip(drawn, asked, strict=True)
        ]
        starts = range(0, len(outputs), self.count)
        return [ChatResult(outputs[start : start + self.count]) for start in starts]


@dataclass(frozen=True)
class _GuidedOutput:
    text: str
    token_ids: Any
    guided_by: dict[str, Any]
