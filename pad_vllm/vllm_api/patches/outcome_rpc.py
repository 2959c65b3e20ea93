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

from pad_vllm.guidance_outcome import MARK, Outcome, Told, total, unknown, with_tokens
from pad_vllm.vllm_api.patches.wrap_method import replace
from pad_vllm.vllm_api.prometheus_metrics import metrics
from pad_vllm.vllm_api.vllm_names import SamplingParams, init_logger

logger = init_logger(__name__)

METHOD = "pad_outcomes"
_UNTOLD = "PAD: the worker did not say whether an answer was guided throughout"
_process = uuid.uuid4().hex
_numbers = itertools.count()


class Guiding(Protocol):
    """What guides a request; kept as long as that lives, so that others see when the last one ended."""

    @property
    def named(self) -> dict[str, str]:
        """What the worker is to read in the place of the client's arguments."""


def answer_workers(told: Callable[[str, Sequence[str]], Told]) -> None:
    """In a worker: `told` of an instance id and marks is what the front end is told."""
    answer_as(METHOD, told)


def answer_as(method: str, by: Callable[..., Any]) -> None:
    """In a worker: what a front end calls by this name is `by` of the instance id and its arguments."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, method, lambda self, *args: by(self.vllm_config.instance_id, *args))


def marked(params: SamplingParams, guiding: Guiding) -> tuple[SamplingParams, _Said]:
    """A copy of a request's parameters whose `extra_args` have a mark of its own, and what becomes of it."""
    metrics().guided()
    mark = f"{_process}-{next(_numbers)}"
    own = copy.copy(params)
    own.extra_args = {**(params.extra_args or {}), **guiding.named, MARK: mark}
    return own, _Said(own, mark, guiding)


def is_marked(params: SamplingParams) -> bool:
    """Whether it is such a copy, made in this process: no client knows the mark."""
    return str((params.extra_args or {}).get(MARK)).startswith(_process)


class _Said:
    """A request's answers, from its outputs: each has all tokens, or, in a stream, the new ones."""

    def __init__(self, params: SamplingParams, mark: str, guiding: Guiding) -> None:
        self.mark, self.guiding = mark, guiding
        self._new = params.output_kind.name == "DELTA"
        self._tokens: dict[int, Any] = {}  # by the output's index, n of them

    def add(self, output: Any) -> None:
        for one in output.outputs:
            if self._new:
                self._tokens.setdefault(one.index, []).extend(one.token_ids)
            else:
                self._tokens[one.index] = one.token_ids

    def told(self, outcome: Outcome, tokenizer: Any) -> Outcome:
        """The field of the last output."""
        said, unguided = sum(map(len, self._tokens.values())), outcome["unguided_tokens"]
        if unguided is not None:
            # Rows are counted, and not all rows become tokens: drafts that are rejected do not.
            outcome = {**outcome, "unguided_tokens": min(unguided, said)}
        metrics().ended(said, outcome["unguided_tokens"])
        try:
            return with_tokens(outcome, self._tokens.get(0, ()), tokenizer)
        except Exception:  # the answer is there, and stays
            logger.exception(_UNTOLD)
            return unknown()


async def with_outcome(engine: Any, outputs: Any, said: _Said) -> AsyncIterator[Any]:
    """The outputs of `AsyncLLM.generate`, the last with the field `pad`; said: what `marked` gave."""
    async with aclosing(outputs):
        async for output in outputs:
            said.add(output)
            if output.finished:
                # Whoever asks is told the figures, which nobody is told again: a client that leaves now
                # must not take them along.
                outcome = await asyncio.shield(_asked(engine, said.mark))
                tell = partial(said.told, outcome, engine.tokenizer)
                # To decode a long answer token by token takes a while.
                output.pad = await asyncio.to_thread(tell) if "steps" in outcome else tell()
            yield output


async def _asked(engine: Any, mark: str) -> Outcome:
    try:
        return _joined(await every(engine, METHOD, [mark]))[0]
    except Exception:  # as above
        logger.exception(_UNTOLD)
        return unknown()


async def every(engine: Any, method: str, *args: Any) -> list[list[Any]]:
    """What the workers of each engine answer; `collective_rpc` returns what those of the first do."""
    if engine.vllm_config.parallel_config.data_parallel_size == 1:
        return [await engine.collective_rpc(method, args=args)]
    ask = engine.engine_core.call_utility_all_async
    told: list[list[Any]] = await ask("collective_rpc", method, None, args, None)
    return told


def _asked_offline(engine: Any, marks: list[str]) -> list[Outcome]:
    try:
        return _joined([engine.collective_rpc(METHOD, args=(marks,))])
    except Exception:  # as above
        logger.exception(_UNTOLD)
        return [unknown() for _ in marks]


def _joined(engines: Iterable[Iterable[Told | None]]) -> list[Outcome]:
    """Ranks of tensor parallelism answer alike; data-parallel engines each of the answers that they had."""
    told = [next(one for one in ranks if one and one[0]) for ranks in engines]
    for _, figures in told:
        if figures is not None:
            metrics().add(figures)
    return [_whole(parts) for parts in zip(*(outcomes for outcomes, _ in told), strict=True)]


def _whole(parts: Iterable[Outcome | None]) -> Outcome:
    known = [part for part in parts if part is not None]
    return known[0] if len(known) == 1 else total(known) or unknown()


def tell_offline(guided: Callable[[Any, Any, Iterable[Any]], Guiding | None]) -> None:
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
        params, said = marked(params, guiding)
        added = original(engine, request_id, prompt, params, *a, **k)
        _asked_for(engine)[request_id] = said
        return added

    if replace(LLMEngine, "step", _step):
        replace(LLMEngine, "add_request", add_request)


def _step(original: Any, engine: Any) -> Any:
    outputs, asked = original(engine), _asked_for(engine)
    ours = [one for one in outputs if one.request_id in asked]
    for output in ours:
        asked[output.request_id].add(output)
    ended = [(one, asked.pop(one.request_id)) for one in ours if one.finished]
    if ended:
        told = _asked_offline(engine, [said.mark for _, said in ended])
        for (output, said), outcome in zip(ended, told, strict=True):
            output.pad = said.told(outcome, engine.tokenizer)
    if asked and not engine.has_unfinished_requests():
        asked.clear()  # of requests that were aborted
    return outputs


def _asked_for(engine: Any) -> dict[str, _Said]:
    """Request id -> its mark and its answer so far, of the guided requests that this engine has."""
    return engine.__dict__.setdefault("pad_asked", {})
