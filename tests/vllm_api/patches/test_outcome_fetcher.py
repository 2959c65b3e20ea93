"""Outcomes of answers that end together: one call, no wait for a dead engine, and nothing lost where a client
leaves.
"""

from __future__ import annotations

import asyncio
import gc

import pytest

from pad_vllm.guidance_outcome import unknown_outcome
from pad_vllm.vllm_api.patches.outcome_fetcher import OutcomeFetcher


def outcome(key):
    return {"guided_tokens": int(key), "unguided_tokens": 0, "stopped": False}


class Workers:
    """Counts its calls; each takes as long as `seconds` says."""

    def __init__(self, seconds=0.0, error=None, *, died=False):
        self.calls, self.finished, self.errors = [], [], []
        self.seconds, self.error = seconds, error
        self.fetcher = OutcomeFetcher(
            self.fetch_all, self.errors.append, has_died=lambda: died, look_every_s=0.05
        )

    async def fetch_all(self, keys):
        self.calls.append(list(keys))
        await asyncio.sleep(self.seconds)
        self.finished.append(list(keys))
        if self.error is not None:
            raise self.error
        return [outcome(key) for key in keys]


async def fetched(workers, keys):
    return await asyncio.gather(*map(workers.fetcher.fetch, keys))


def test_answers_that_end_in_one_turn_of_the_loop_share_a_call():
    workers, keys = Workers(), [str(i) for i in range(256)]
    assert asyncio.run(fetched(workers, keys)) == [outcome(key) for key in keys]
    assert workers.calls == [keys]


def test_a_later_one_has_a_call_of_its_own_and_does_not_wait_for_the_first():
    workers = Workers(seconds=0.05)

    async def both():
        first = asyncio.create_task(workers.fetcher.fetch("1"))
        await asyncio.sleep(0.01)
        return await workers.fetcher.fetch("2"), await first

    assert asyncio.run(both()) == (outcome("2"), outcome("1"))
    assert workers.calls == [["1"], ["2"]]


@pytest.mark.parametrize(
    ("workers", "error"),
    [
        (Workers(seconds=5.0, died=True), TimeoutError),
        (Workers(error=RuntimeError("the engine is dead")), RuntimeError),
    ],
    ids=["died meanwhile", "raises"],
)
def test_where_no_answer_comes_the_outcomes_are_unknown(workers, error):
    assert asyncio.run(fetched(workers, ["1", "2"])) == [unknown_outcome()] * 2
    assert [type(one) for one in workers.errors] == [error]


def test_a_slow_engine_that_lives_is_waited_for():
    workers = Workers(seconds=0.3)
    assert asyncio.run(fetched(workers, ["1"])) == [outcome("1")]
    assert not workers.errors


@pytest.mark.parametrize("error", [None, RuntimeError("late, and in vain")])
def test_an_engine_that_lives_and_does_not_answer_is_waited_for_until_a_deadline(error):
    workers = Workers(seconds=0.3, error=error)
    workers.fetcher = OutcomeFetcher(
        workers.fetch_all,
        workers.errors.append,
        has_died=lambda: False,
        look_every_s=0.05,
        deadline_s=0.1,
    )
    complaints = []

    async def wait_and_stay():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        found = await workers.fetcher.fetch("1")
        assert not workers.finished
        await asyncio.sleep(0.4)
        workers.errors[0].__traceback__ = None  # has the call in one of its frames
        gc.collect(1)  # the young objects: all that vLLM imports take seconds
        return found

    assert asyncio.run(wait_and_stay()) == unknown_outcome()
    assert [str(one) for one in workers.errors] == ["no answer of the engine in 0.1 s"]
    assert workers.finished == [["1"]]  # with the counts that it brings
    assert not complaints


def test_too_few_outcomes_are_nobodys():
    workers = Workers()

    async def fetch_all(keys):
        return [outcome(keys[0])]

    workers.fetcher = OutcomeFetcher(fetch_all, workers.errors.append, has_died=lambda: False)
    assert asyncio.run(fetched(workers, ["1", "2"])) == [unknown_outcome()] * 2
    assert [type(one) for one in workers.errors] == [ValueError]


def test_a_client_that_leaves_does_not_end_the_call():
    workers = Workers(seconds=0.05)

    async def leave():
        leaving = asyncio.create_task(workers.fetcher.fetch("1"))
        staying = asyncio.create_task(workers.fetcher.fetch("2"))
        await asyncio.sleep(0.01)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        return await staying

    assert asyncio.run(leave()) == outcome("2")
    assert workers.calls == [["1", "2"]]
