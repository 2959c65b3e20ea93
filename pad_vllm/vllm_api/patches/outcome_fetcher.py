"""Fetches outcomes of answers from an engine's workers: those of one turn of the event loop in one call.

In: outcome keys, as answers end. Out: the Outcome of each. A call waits between two steps of the engine, so
that many answers which end at once should share one; and an engine that has died answers none, so that each
call has a deadline, after which its outcomes are unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pad_vllm.guidance_outcome import Outcome, unknown_outcome

DEADLINE_S = 30.0
"""Seconds that a call may take. A step is a fraction of a second; one that compiles may take many."""

FetchAll = Callable[[Sequence[str]], Awaitable[list[Outcome]]]
"""Outcome keys -> the outcome of each, from all workers."""


class OutcomeFetcher:
    """The calls of one engine. Used on one event loop."""

    def __init__(
        self,
        fetch_all: FetchAll,
        on_error: Callable[[BaseException], None],
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """Nothing is fetched yet.

        Args:
            fetch_all: one call of the workers; it may raise.
            on_error: told what a call raised, a TimeoutError after the deadline.
            deadline_s: seconds.
        """
        self._fetch_all, self._on_error, self._deadline_s = fetch_all, on_error, deadline_s
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._calls: set[asyncio.Task[None]] = set()  # the loop holds tasks weakly

    async def fetch(self, outcome_key: str) -> Outcome:
        """The outcome of an answer; unknown where the call failed or took too long. Raises nothing but
        CancelledError: the call goes on, because a worker reports each count once.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._start_call)
        future = self._waiting[outcome_key] = loop.create_future()
        return await asyncio.shield(future)

    def _start_call(self) -> None:
        waiting, self._waiting = self._waiting, {}
        call = asyncio.get_running_loop().create_task(self._call(waiting))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, waiting: dict[str, asyncio.Future[Outcome]]) -> None:
        try:
            fetched = await asyncio.wait_for(self._fetch_all(list(waiting)), self._deadline_s)
            outcomes = dict(zip(waiting, fetched, strict=True))
        except Exception as error:  # noqa: BLE001, the answers are there, and are returned all the same
            self._on_error(error)
            outcomes = {outcome_key: unknown_outcome() for outcome_key in waiting}
        for outcome_key, future in waiting.items():
            if not future.done():
                future.set_result(outcomes[outcome_key])
