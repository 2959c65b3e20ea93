"""The field `pad` of a guided request's last `RequestOutput`: what the worker reports about its answer.

A guided request gets an outcome key as it enters, and where its answer ends the front end asks the worker
for the outcome by that key (`collective_rpc`). Counts for /metrics come with it (prometheus_metrics.py).
Uses `AsyncLLM.generate`, its engine core's `call_utility_all_async` under data parallelism,
`LLMEngine.add_request`, `abort_request` and `step`, their `tokenizer`, the outputs' `index` and `token_ids`,
`output_kind`, and the workers' base class.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from pad_vllm.guidance_outcome import (
    OUTCOME_KEY,
    Outcome,
    WorkerReport,
    in_tokens,
    total_outcome,
    unasked_outcome,
    unknown_outcome,
    with_explanations,
)
from pad_vllm.vllm_api.patches.outcome_fetcher import OutcomeFetcher
from pad_vllm.vllm_api.patches.user_request import RequestGuidance, UserRequest
from pad_vllm.vllm_api.patches.wrap_method import wrap_method
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.vllm_api.vllm_names import SamplingParams, init_logger

logger = init_logger(__name__)

OUTCOME_METHOD = "pad_outcomes"
_NO_OUTCOME = "PAD: the outcome of an answer is lost; the counts in its `pad` field are null"
_process_key = uuid.uuid4().hex
_key_numbers = itertools.count()


# In a worker.


def add_outcome_method(report: Callable[[str, Sequence[str]], WorkerReport]) -> None:
    """In a worker: `report(instance id, outcome keys)` answers the front end's calls of OUTCOME_METHOD."""
    add_worker_method(OUTCOME_METHOD, report)


def add_worker_method(method: str, function: Callable[..., Any]) -> None:
    """In a worker: `function(instance id, *arguments)` answers the front end's calls of `method`."""
    from vllm.v1.worker.worker_base import WorkerBase

    setattr(WorkerBase, method, lambda self, *args: function(self.vllm_config.instance_id, *args))


# In a front end: the server's, and the one of an offline LLM.


class InFlightRequest:
    """A guided request that has not ended: its outcome key, and the tokens of its answers so far."""

    def __init__(
        self, params: SamplingParams, outcome_key: str, guidance: RequestGuidance | UserRequest
    ) -> None:
        """Start with no tokens.

        Args:
            params: of the request; they say whether an output has all tokens or, in a stream, the new ones.
            outcome_key: by which the worker knows the request.
            guidance: what guides it, held as long as this object.
        """
        self.outcome_key, self.guidance = outcome_key, guidance
        self._outputs_are_deltas = params.output_kind.name == "DELTA"
        self._tokens: dict[int, Any] = {}  # by the output's index: a request has n answers

    @property
    def is_guided(self) -> bool:
        """Whether the worker has an outcome of it."""
        return not isinstance(self.guidance, UserRequest) or self.guidance.guidance is not None

    def add_output(self, output: Any) -> None:
        """Store the tokens of a RequestOutput."""
        for answer in output.outputs:
            if self._outputs_are_deltas:
                self._tokens.setdefault(answer.index, []).extend(answer.token_ids)
            else:
                self._tokens[answer.index] = answer.token_ids

    def pad_field(self, outcome: Outcome, tokenizer: Any) -> Outcome:
        """The field `pad` of the last output, from the worker's outcome. Counts the answers' tokens."""
        num_tokens = sum(map(len, self._tokens.values()))
        outcome = in_tokens(outcome, num_tokens)
        if self.is_guided:
            pad_metrics().count_answer_tokens(num_tokens, outcome["unguided_tokens"])
        try:
            outcome = with_explanations(outcome, self._tokens.get(0, ()), tokenizer)
        except Exception:  # the answer is there, and is returned all the same
            logger.exception(_NO_OUTCOME)
            outcome = unknown_outcome()
        if isinstance(self.guidance, UserRequest):
            outcome["user"] = self.guidance.user
            outcome["profile_version"] = self.guidance.profile_version
        return outcome


def with_outcome_key(
    params: SamplingParams, guidance: RequestGuidance | UserRequest
) -> tuple[SamplingParams, InFlightRequest]:
    """Give a request that is guided, or names a user, an outcome key of its own.

    Returns:
        A copy of `params`, whose `extra_args` have the key and the worker's arguments; the request in flight.
    """
    if isinstance(guidance, UserRequest):
        pad_metrics().count_user_request(is_known=guidance.is_known)
        arguments, guides = dict(guidance.arguments), guidance.guidance
    else:
        arguments, guides = params.extra_args or {}, guidance
    if guides is not None:
        pad_metrics().count_guided_request()
    key = f"{_process_key}-{next(_key_numbers)}"
    params_with_key = copy.copy(params)
    worker_arguments = {} if guides is None else guides.worker_arguments
    params_with_key.extra_args = {**arguments, **worker_arguments, OUTCOME_KEY: key}
    return params_with_key, InFlightRequest(params_with_key, key, guidance)


def has_outcome_key(params: SamplingParams) -> bool:
    """Whether `params` come from `with_outcome_key` in this process: no client knows the key."""
    return str((params.extra_args or {}).get(OUTCOME_KEY)).startswith(_process_key)


# The server, and any AsyncLLM.


async def with_outcome(engine: Any, outputs: Any, request: InFlightRequest) -> AsyncIterator[Any]:
    """Yield the outputs of `AsyncLLM.generate`, the last with the field `pad`.

    Args:
        engine: the AsyncLLM.
        outputs: its RequestOutputs of the request.
        request: from `with_outcome_key`.
    """
    async with aclosing(outputs):
        async for output in outputs:
            request.add_output(output)
            if output.finished:
                outcome = unasked_outcome()
                if request.is_guided:
                    outcome = await _fetcher(engine).fetch(request.outcome_key)
                make_field = partial(request.pad_field, outcome, engine.tokenizer)
                # Decoding a long answer token by token takes a while.
                explained = "steps" in outcome
                output.pad = await asyncio.to_thread(make_field) if explained else make_field()
            yield output


def _fetcher(engine: Any) -> OutcomeFetcher:
    """The engine's own, made at the first call."""
    fetcher: OutcomeFetcher | None = getattr(engine, "pad_outcome_fetcher", None)
    if fetcher is None:

        async def fetch_all(outcome_keys: Sequence[str]) -> list[Outcome]:
            return _merge_reports(
                await call_all_workers(engine, OUTCOME_METHOD, list(outcome_keys))
            )

        def log(error: BaseException) -> None:
            logger.error(_NO_OUTCOME, exc_info=error)

        fetcher = engine.pad_outcome_fetcher = OutcomeFetcher(
            fetch_all, log, has_died=lambda: bool(getattr(engine, "errored", False))
        )
    return fetcher


async def call_all_workers(engine: Any, method: str, *args: Any) -> list[list[Any]]:
    """Call a method that `add_worker_method` added, in all workers of all data-parallel engines.

    `AsyncLLM.collective_rpc` returns the results of the first engine only.

    Args:
        engine: the AsyncLLM.
        method: its name.
        *args: what the method gets after the instance id.

    Returns:
        For each engine, the results of its ranks.
    """
    if engine.vllm_config.parallel_config.data_parallel_size == 1:
        return [await engine.collective_rpc(method, args=args)]
    call = engine.engine_core.call_utility_all_async
    results: list[list[Any]] = await call("collective_rpc", method, None, args, None)
    return results


# An offline LLM.


def patch_offline_engine(
    guidance_of: Callable[[Any, Any, Iterable[Any]], RequestGuidance | UserRequest | None],
) -> None:
    """Wrap `LLMEngine`, so that the finished outputs of guided requests have the field `pad`. Calling twice
    changes nothing.

    Args:
        guidance_of: called with the engine, a request's parameters and all its arguments; returns what guides
            it, or None.
    """
    from vllm.v1.engine.llm_engine import LLMEngine

    def add_request(
        original: Any, engine: Any, request_id: str, prompt: Any, params: Any, *a: Any, **k: Any
    ) -> Any:
        guidance = guidance_of(engine, params, (prompt, *a, *k.values()))
        if guidance is None:
            return original(engine, request_id, prompt, params, *a, **k)
        params, request = with_outcome_key(params, guidance)
        added = original(engine, request_id, prompt, params, *a, **k)
        _in_flight(engine)[request_id] = request
        return added

    if wrap_method(LLMEngine, "step", _step):
        wrap_method(LLMEngine, "add_request", add_request)
        wrap_method(LLMEngine, "abort_request", _abort_request)


def _abort_request(
    original: Any, engine: Any, request_ids: list[str], *args: Any, **kwargs: Any
) -> Any:
    aborted = original(engine, request_ids, *args, **kwargs)
    for request_id in request_ids:
        _in_flight(engine).pop(request_id, None)
    return aborted


def _step(original: Any, engine: Any) -> Any:
    outputs, in_flight = original(engine), _in_flight(engine)
    guided = [output for output in outputs if output.request_id in in_flight]
    for output in guided:
        in_flight[output.request_id].add_output(output)
    ended = [(output, in_flight.pop(output.request_id)) for output in guided if output.finished]
    keys = [request.outcome_key for _, request in ended if request.is_guided]
    fetched = dict(zip(keys, _fetch_outcomes_offline(engine, keys), strict=True)) if keys else {}
    for output, request in ended:
        outcome = fetched.get(request.outcome_key, unasked_outcome())
        output.pad = request.pad_field(outcome, engine.tokenizer)
    if in_flight and not engine.has_unfinished_requests():
        in_flight.clear()  # whatever ended without an output
    return outputs


def _in_flight(engine: Any) -> dict[str, InFlightRequest]:
    """The guided requests of this LLMEngine that have not ended, by request id."""
    return engine.__dict__.setdefault("pad_in_flight", {})


def _fetch_outcomes_offline(engine: Any, outcome_keys: list[str]) -> list[Outcome]:
    try:
        return _merge_reports([engine.collective_rpc(OUTCOME_METHOD, args=(outcome_keys,))])
    except Exception:  # the answers are there, and are returned all the same
        logger.exception(_NO_OUTCOME)
        return [unknown_outcome() for _ in outcome_keys]


# What several workers report.


def _merge_reports(engines: Iterable[Iterable[WorkerReport | None]]) -> list[Outcome]:
    """One outcome for each key, from the reports of each engine's ranks; adds their counts to the metrics.

    The ranks of one engine that have outcomes report the same. Of data-parallel engines each reports about
    the answers that it had.
    """
    reports = [next(report for report in ranks if report and report[0]) for ranks in engines]
    for _, counts in reports:
        if counts is not None:
            pad_metrics().add_worker_counts(counts)
    by_key = zip(*(outcomes for outcomes, _ in reports), strict=True)
    return [_merge_outcomes(outcomes) for outcomes in by_key]


def _merge_outcomes(outcomes: Iterable[Outcome | None]) -> Outcome:
    reported = [outcome for outcome in outcomes if outcome is not None]
    return reported[0] if len(reported) == 1 else total_outcome(reported) or unknown_outcome()
