"""Fetches outcomes of answers from an engine's workers: those of one turn of the event loop in one call.

In: outcome keys, as answers end. Out: the Outcome of each. A call waits between two steps of the engine, so
that many answers which end at once should share one. An engine that has died answers none: while a call
waits, the engine is looked at, and where it has died the outcomes are unknown. So they are where an engine
that lives takes too long: of data-parallel ones all are asked, and one of them may hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pad_vllm.guidance_outcome import Outcome, unknown_outcome

LOOK_EVERY_S = 5.0
"""Seconds between two looks at the engine."""

DEADLINE_S = 60.0
"""Seconds that an answer waits for its outcome. A call may take long: a step that compiles, a prefill on a
CPU. But a client is better served with its whole answer and an unknown outcome.
"""

FetchAll = Callable[[Sequence[str]], Awaitable[list[Outcome]]]
"""Outcome keys -> the outcome of each, from all workers."""


class OutcomeFetcher:
    """The calls of one engine. Used on one event loop."""

    def __init__(
        self,
        fetch_all: FetchAll,
        on_error: Callable[[BaseException], None],
        has_died: Callable[[], bool],
        look_every_s: float = LOOK_EVERY_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """Nothing is fetched yet.

        Args:
            fetch_all: one call of the workers; it may raise.
            on_error: told what a call raised, a TimeoutError where the engine has died or was too late.
            has_died: whether the engine can answer no more.
            look_every_s: seconds.
            deadline_s: seconds that an answer waits. The call goes on: it also brings counts for /metrics.
        """
        self._fetch_all, self._on_error = fetch_all, on_error
        self._has_died, self._look_every_s = has_died, look_every_s
        self._deadline_s = deadline_s
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._calls: set[asyncio.Future[Any]] = set()  # the loop holds tasks weakly

    async def fetch(self, outcome_key: str) -> Outcome:
        """The outcome of an answer; unknown where the call failed, the engine has died or the deadline has
        passed. Raises nothing but CancelledError: the call goes on, because a worker reports each count once.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._start_call)
        future = self._waiting[outcome_key] = loop.create_future()
        return await asyncio.shield(future)

    def _start_call(self) -> None:
        waiting, self._waiting = self._waiting, {}
        self._hold(asyncio.get_running_loop().create_task(self._call(waiting)))

    def _hold(self, call: asyncio.Future[Any]) -> None:
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, waiting: dict[str, asyncio.Future[Outcome]]) -> None:
        try:
            fetched = await self._answer_of_living(self._fetch_all(list(waiting)))
            outcomes = dict(zip(waiting, fetched, strict=True))
        except Exception as error:  # noqa: BLE001, the answers are there, and are returned all the same
            self._on_error(error)
            outcomes = {outcome_key: unknown_outcome() for outcome_key in waiting}
        for outcome_key, future in waiting.items():
            if not future.done():
                future.set_result(outcomes[outcome_key])

    async def _answer_of_living(self, answer: Awaitable[list[Outcome]]) -> list[Outcome]:
        """What a call returns. Raises what it raises, and TimeoutError where the engine died meanwhile, or
        has not answered by the deadline.
        """
        call, clock = asyncio.ensure_future(answer), asyncio.get_running_loop().time
        deadline = clock() + self._deadline_s
        while not (await asyncio.wait({call}, timeout=self._look_every_s))[0]:
            if self._has_died():
                call.cancel()
                raise TimeoutError("the engine has died")
            if clock() >= deadline:
                self._leave_alone(call)
                raise TimeoutError(f"no answer of the engine in {self._deadline_s:g} s")
        return call.result()

    def _leave_alone(self, call: asyncio.Future[list[Outcome]]) -> None:
        """Nobody waits for this call any more."""
        self._hold(call)
        call.add_done_callback(lambda late: late.cancelled() or late.exception())
