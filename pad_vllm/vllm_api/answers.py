"""The field `pad` of a guided request's last `RequestOutput`: what the worker says became of its answer.

A guided request gets a mark on its way in, and when its answer ends the worker is asked about it by that
mark (`collective_rpc`). Leans on `AsyncLLM.generate`, on `LLMEngine.add_request` and `step`, and on the
workers' base class.
"""

from __future__ import annotations

import copy
import functools
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from pad_vllm.outcome import MARK, Outcome, unknown
from pad_vllm.vllm_api.names import SamplingParams, init_logger

logger = init_logger(__name__)

METHOD = "pad_outcomes"
_UNTOLD = "PAD: the worker did not say whether an answer was guided throughout"
_process = uuid.uuid4().hex
_numbers = itertools.count()


def answer_workers(outcomes: Callable[[str, Sequence[str]], list[Outcome]]) -> None:
    """In a worker: `outcomes` of an instance id and marks is what the front end is told."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, METHOD, lambda self, marks: outcomes(self.vllm_config.instance_id, marks))


def marked(params: SamplingParams) -> tuple[SamplingParams, str]:
    """A copy of a request's parameters whose `extra_args` have a mark of its own, and that mark."""
    mark = f"{_process}-{next(_numbers)}"
    own = copy.copy(params)
    own.extra_args = {**(params.extra_args or {}), MARK: mark}
    return own, mark


async def with_outcome(engine: Any, outputs: Any, mark: str) -> AsyncIterator[Any]:
    """The outputs of `AsyncLLM.generate`, the last with the field `pad`."""
    async with aclosing(outputs):
        async for output in outputs:
            if output.finished:
                output.pad = await _asked(engine, mark)
            yield output


async def _asked(engine: Any, mark: str) -> Outcome:
    try:
        return _first(await engine.collective_rpc(METHOD, args=([mark],)))[0]
    except Exception:  # the answer is there, and stays
        logger.exception(_UNTOLD)
        return unknown()


def _asked_offline(engine: Any, marks: list[str]) -> list[Outcome]:
    try:
        return _first(engine.collective_rpc(METHOD, args=(marks,)))
    except Exception:  # as above
        logger.exception(_UNTOLD)
        return [unknown() for _ in marks]


def _first(told: Iterable[list[Outcome] | None]) -> list[Outcome]:
    """Every rank of tensor parallelism answers alike."""
    return next(outcomes for outcomes in told if outcomes)


def tell_offline(guided: Callable[[Any, Any], bool]) -> None:
    """In this process, `LLMEngine` marks the requests that are guided(engine, params), and its finished
    outputs have the field `pad`. Calling twice changes nothing.
    """
    from vllm.v1.engine.llm_engine import LLMEngine

    add, step = LLMEngine.add_request, LLMEngine.step
    if getattr(add, "pad_hooked", False):
        return

    @functools.wraps(add)
    def add_request(self: Any, request_id: str, prompt: Any, params: Any, *a: Any, **k: Any) -> Any:
        if not guided(self, params):
            return add(self, request_id, prompt, params, *a, **k)
        params, mark = marked(params)
        added = add(self, request_id, prompt, params, *a, **k)
        _marks(self)[request_id] = mark
        return added

    @functools.wraps(step)
    def step_and_tell(self: Any) -> Any:
        outputs = step(self)
        marks = _marks(self)
        ended = [one for one in outputs if one.finished and one.request_id in marks]
        if ended:
            told = _asked_offline(self, [marks.pop(one.request_id) for one in ended])
            for output, outcome in zip(ended, told, strict=True):
                output.pad = outcome
        if marks and not self.has_unfinished_requests():
            marks.clear()  # of requests that were aborted
        return outputs

    add_request.pad_hooked = True  # type: ignore[attr-defined]
    LLMEngine.add_request, LLMEngine.step = add_request, step_and_tell


def _marks(engine: Any) -> dict[str, str]:
    """Request id -> mark, of the guided requests that this engine has."""
    return engine.__dict__.setdefault("pad_marks", {})
