"""Fetches outcomes of answers from an engine's workers: those of one turn of the event loop in one call.

In: outcome keys, as answers end. Out: the Outcome of each. A call waits between two steps of the engine, so
that many answers which end at once should share one. An engine that has died answers none: while a call
waits, the engine is looked at, and where it has died the outcomes are unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from pad_vllm.guidance_outcome import Outcome, unknown_outcome

LOOK_EVERY_S = 5.0
"""Seconds between two looks at the engine. A call may take long: a step that compiles, a prefill on a CPU."""

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
    ) -> None:
        """Nothing is fetched yet.

        Args:
            fetch_all: one call of the workers; it may raise.
            on_error: told what a call raised, a TimeoutError where the engine has died.
            has_died: whether the engine can answer no more.
            look_every_s: seconds.
        """
        self._fetch_all, self._on_error = fetch_all, on_error
        self._has_died, self._look_every_s = has_died, look_every_s
        self._waiting: dict[str, asyncio.Future[Outcome]] = {}
        self._calls: set[asyncio.Task[None]] = set()  # the loop holds tasks weakly

    async def fetch(self, outcome_key: str) -> Outcome:
        """The outcome of an answer; unknown where the call failed or the engine has died. Raises nothing but
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
            fetched = await self._answer_of_living(self._fetch_all(list(waiting)))
            outcomes = dict(zip(waiting, fetched, strict=True))
        except Exception as error:  # noqa: BLE001, the answers are there, and are returned all the same
            self._on_error(error)
            outcomes = {outcome_key: unknown_outcome() for outcome_key in waiting}
        for outcome_key, future in waiting.items():
            if not future.done():
                future.set_result(outcomes[outcome_key])

    async def _answer_of_living(self, answer: Awaitable[list[Outcome]]) -> list[Outcome]:
        """What a call returns. Raises what it raises, and TimeoutError where the engine died meanwhile."""
        call = asyncio.ensure_future(answer)
        while not (await asyncio.wait({call}, timeout=self._look_every_s))[0]:
            if self._has_died():
                call.cancel()
                raise TimeoutError("the engine has died")
        return call.result()
