"""The field `pad` of a guided request's last `RequestOutput`: what the worker says became of its answer.

A guided request gets a mark on its way in, and when its answer ends the worker is asked about it by that
mark (`collective_rpc`); what guidance did since comes with it, for /metrics (metrics.py). Leans on
`AsyncLLM.generate`, on its engine core's `call_utility_all_async` under data parallelism, on
`LLMEngine.add_request` and `step`, their `tokenizer`, the outputs' `index` and `token_ids`, `output_kind`,
and on the workers' base class.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

from pad_vllm.guidance_outcome import (
    OUTCOME_KEY,
    Outcome,
    WorkerReport,
    total_outcome,
    unknown_outcome,
    with_explanations,
)
from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.vllm_api.vllm_names import SamplingParams, init_logger

logger = init_logger(__name__)

OUTCOME_METHOD = "pad_outcomes"
_UNTOLD = "PAD: the worker did not say whether an answer was guided throughout"
_process = uuid.uuid4().hex
_numbers = itertools.count()


class RequestGuidance(Protocol):
    """What guides a request; kept as long as that lives, so that others see when the last one ended."""

    @property
    def worker_arguments(self) -> dict[str, str]:
        """What the worker is to read in the place of the client's arguments."""


def add_outcome_method(report: Callable[[str, Sequence[str]], WorkerReport]) -> None:
    """In a worker: `told` of an instance id and marks is what the front end is told."""
    add_worker_method(OUTCOME_METHOD, report)


def add_worker_method(method: str, function: Callable[..., Any]) -> None:
    """In a worker: what a front end calls by this name is `by` of the instance id and its arguments."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, method, lambda self, *args: function(self.vllm_config.instance_id, *args))


def with_outcome_key(
    params: SamplingParams, guiding: RequestGuidance
) -> tuple[SamplingParams, InFlightRequest]:
    """A copy of a request's parameters whose `extra_args` have a mark of its own, and what becomes of it."""
    pad_metrics().count_guided_request()
    mark = f"{_process}-{next(_numbers)}"
    own = copy.copy(params)
    own.extra_args = {**(params.extra_args or {}), **guiding.worker_arguments, OUTCOME_KEY: mark}
    return own, InFlightRequest(own, mark, guiding)


def has_outcome_key(params: SamplingParams) -> bool:
    """Whether it is such a copy, made in this process: no client knows the mark."""
    return str((params.extra_args or {}).get(OUTCOME_KEY)).startswith(_process)


class InFlightRequest:
    """A request's answers, from its outputs: each has all tokens, or, in a stream, the new ones."""

    def __init__(self, params: SamplingParams, mark: str, guiding: RequestGuidance) -> None:
        self.outcome_key, self.guiding = mark, guiding
        self._new = params.output_kind.name == "DELTA"
        self._tokens: dict[int, Any] = {}  # by the output's index, n of them

    def add_output(self, output: Any) -> None:
        for one in output.outputs:
            if self._new:
                self._tokens.setdefault(one.index, []).extend(one.token_ids)
            else:
                self._tokens[one.index] = one.token_ids

    def pad_field(self, outcome: Outcome, tokenizer: Any) -> Outcome:
        """The field of the last output."""
        said, unguided = sum(map(len, self._tokens.values())), outcome["unguided_tokens"]
        if unguided is not None:
            # Rows are counted, and not all rows become tokens: drafts that are rejected do not.
            outcome = {**outcome, "unguided_tokens": min(unguided, said)}
        pad_metrics().count_answer_tokens(said, outcome["unguided_tokens"])
        try:
            return with_explanations(outcome, self._tokens.get(0, ()), tokenizer)
        except Exception:  # the answer is there, and stays
            logger.exception(_UNTOLD)
            return unknown_outcome()


async def with_outcome(engine: Any, outputs: Any, said: InFlightRequest) -> AsyncIterator[Any]:
    """The outputs of `AsyncLLM.generate`, the last with the field `pad`; said: what `marked` gave."""
    async with aclosing(outputs):
        async for output in outputs:
            said.add_output(output)
            if output.finished:
                # Whoever asks is told the figures, which nobody is told again: a client that leaves now
                # must not take them along.
                outcome = await asyncio.shield(_fetch_outcome(engine, said.outcome_key))
                tell = partial(said.pad_field, outcome, engine.tokenizer)
                # To decode a long answer token by token takes a while.
                output.pad = await asyncio.to_thread(tell) if "steps" in outcome else tell()
            yield output


async def _fetch_outcome(engine: Any, mark: str) -> Outcome:
    try:
        return _merge_reports(await call_all_workers(engine, OUTCOME_METHOD, [mark]))[0]
    except Exception:  # as above
        logger.exception(_UNTOLD)
        return unknown_outcome()


async def call_all_workers(engine: Any, method: str, *args: Any) -> list[list[Any]]:
    """What the workers of each engine answer; `collective_rpc` returns what those of the first do."""
    if engine.vllm_config.parallel_config.data_parallel_size == 1:
        return [await engine.collective_rpc(method, args=args)]
    ask = engine.engine_core.call_utility_all_async
    told: list[list[Any]] = await ask("collective_rpc", method, None, args, None)
    return told


def _fetch_outcomes_offline(engine: Any, marks: list[str]) -> list[Outcome]:
    try:
        return _merge_reports([engine.collective_rpc(OUTCOME_METHOD, args=(marks,))])
    except Exception:  # as above
        logger.exception(_UNTOLD)
        return [unknown_outcome() for _ in marks]


def _merge_reports(engines: Iterable[Iterable[WorkerReport | None]]) -> list[Outcome]:
    """Ranks of tensor parallelism answer alike; data-parallel engines each of the answers that they had."""
    told = [next(one for one in ranks if one and one[0]) for ranks in engines]
    for _, figures in told:
        if figures is not None:
            pad_metrics().add_worker_counts(figures)
    return [
        _merge_outcomes(parts) for parts in zip(*(outcomes for outcomes, _ in told), strict=True)
    ]


def _merge_outcomes(parts: Iterable[Outcome | None]) -> Outcome:
    known = [part for part in parts if part is not None]
    return known[0] if len(known) == 1 else total_outcome(known) or unknown_outcome()


def patch_offline_engine(
    guided: Callable[[Any, Any, Iterable[Any]], RequestGuidance | None],
) -> None:
    """In this process, `LLMEngine` marks the requests that something guides, by guided(engine, params, all
    that they came with), and its finished outputs have the field `pad`. Calling twice changes nothing.
    """
    from vllm.v1.engine.llm_engine import LLMEngine

    def add_request(
        original: Any, engine: Any, request_id: str, prompt: Any, params: Any, *a: Any, **k: Any
    ) -> Any:
        guiding = guided(engine, params, (prompt, *a, *k.values()))
        if guiding is None:
            return original(engine, request_id, prompt, params, *a, **k)
        params, said = with_outcome_key(params, guiding)
        added = original(engine, request_id, prompt, params, *a, **k)
        _in_flight(engine)[request_id] = said
        return added

    if wrap_method(LLMEngine, "step", _step):
        wrap_method(LLMEngine, "add_request", add_request)


def _step(original: Any, engine: Any) -> Any:
    outputs, asked = original(engine), _in_flight(engine)
    ours = [one for one in outputs if one.request_id in asked]
    for output in ours:
        asked[output.request_id].add_output(output)
    ended = [(one, asked.pop(one.request_id)) for one in ours if one.finished]
    if ended:
        told = _fetch_outcomes_offline(engine, [said.outcome_key for _, said in ended])
        for (output, said), outcome in zip(ended, told, strict=True):
            output.pad = said.pad_field(outcome, engine.tokenizer)
    if asked and not engine.has_unfinished_requests():
        asked.clear()  # of requests that were aborted
    return outputs


def _in_flight(engine: Any) -> dict[str, InFlightRequest]:
    """Request id -> its mark and its answer so far, of the guided requests that this engine has."""
    return engine.__dict__.setdefault("pad_asked", {})
