"""The pool of reward actors over a stand-in for Ray: which actor gets which rows, and what failures cost."""

from __future__ import annotations

import random
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from counting_list import CountingList

from pad_vllm.config import PADConfig
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.ray_engine import RayRewardScorer, _join_ray
from pad_vllm.engines.reward_actor_process import PersRMActor
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest

DIGEST = "0" * 64


class RayError(Exception):
    """What Ray raises."""


class WaitingClock:
    """Seconds that pass only when a test says so, or where a call waits."""

    now = 0.0

    def __call__(self):
        return self.now


class LengthActor(PersRMActor):
    """The actor's own bookkeeping over a scorer that rewards a candidate with the text's length."""

    def __init__(self, *_):
        self.alive, self.late, self.steps, self.num_unchanged = True, False, [], []
        self.takes, self.free = 0.0, 0.0  # seconds a step; when its last call ends
        self.restart()

    def restart(self):
        self._tokens, self._busy = {}, []
        self._scorer = self._lengths

    def _lengths(self, requests):
        self.steps.append([(request.key, list(request.tokens)) for request in requests])
        self.num_unchanged.append([request.num_unchanged for request in requests])
        width = max((len(request.candidates) for request in requests), default=0)
        return torch.tensor([[float(len(request.tokens))] * width for request in requests])

    def ready(self):
        return {}


class FakeRay:
    """Calls run when they are made. A dead actor's fail, a late one's do not end, a slow one's take time."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self):
        self.actors, self.options, self.given = [], None, None
        self.clock = WaitingClock()

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return {"CPU": 2.0, "memory": 1e9, "node:10.0.0.1": 1.0}

    def remote(self, _cls):
        return SimpleNamespace(options=self._options)

    def _options(self, **options):
        self.options = options
        return SimpleNamespace(remote=self._make)

    def _make(self, *given):
        self.given = given
        actor = LengthActor()
        self.actors.append(actor)
        return SimpleNamespace(
            **{name: self._method(actor, name) for name in ("step", "ready", "busy")}
        )

    def _method(self, actor, name):
        def call(*given):
            if not actor.alive:
                return actor, RayError("dead"), self.clock.now
            if actor.late:
                return actor, TimeoutError("late"), self.clock.now
            actor.free = max(actor.free, self.clock.now) + actor.takes * (name == "step")
            try:
                return actor, getattr(actor, name)(*given), actor.free
            except Exception as error:  # noqa: BLE001, Ray raises it where the result is read
                return actor, RayError(str(error)), actor.free

        return SimpleNamespace(remote=call)

    def get(self, ref, timeout=float("inf")):
        if isinstance(ref, list):
            return [self.get(one) for one in ref]
        actor, found, done = ref
        if done > self.clock.now + timeout:
            self.clock.now += timeout
            raise TimeoutError("late")
        self.clock.now = max(self.clock.now, done)
        if isinstance(found, TimeoutError) and not actor.late:
            return {}  # the answer has come in the meantime
        if isinstance(found, Exception):
            raise found
        return found

    def wait(self, refs, timeout):
        actor, found, done = refs[0]
        waits = done > self.clock.now or (isinstance(found, TimeoutError) and actor.late)
        return ([], refs) if waits else (refs, [])


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def pool_of(actors=1, clock=time.monotonic, **settings):
    pad = PADConfig("/a", engine="ray", ray_actors=actors, **settings)
    return RayRewardScorer(pad, DIGEST, torch.float32, FailureLog(lambda _: None), clock=clock)


def request(key, length, *, candidates=1, must_finish=True):
    return ScoringRequest(
        key, list(range(length)), (1.0,), [(length, (7,))] * candidates, must_finish
    )


def test_only_new_tokens_cross_the_wire_and_the_actor_has_the_whole_text(ray):
    pool, (actor,) = pool_of(), ray.actors
    sent = []
    step = actor.step
    actor.step = lambda messages: sent.append(messages) or step(messages)
    assert pool([request(0, 5)]).tolist() == [[5.0]]
    pool.start_prefill([ScoringRequest(0, [*range(6)], (1.0,))])
    assert pool([request(0, 6)]).tolist() == [[6.0]]
    assert [(m.num_kept, m.added) for (m,) in sent] == [(0, (0, 1, 2, 3, 4)), (5, (5,)), (6, ())]
    assert actor.steps[-1] == [(0, [0, 1, 2, 3, 4, 5])]


def test_rows_are_spread_and_stay_with_their_actor(ray):
    pool = pool_of(actors=2)
    requests = [request(key, 3) for key in range(4)]
    pool(requests)
    pool([requests[3], requests[0]])
    first, second = ([{key for key, _ in step} for step in one.steps] for one in ray.actors)
    assert [len(step) for step in (*first[:1], *second[:1])] == [2, 2]
    assert first[1] <= first[0]
    assert second[1] <= second[0]


def test_rows_of_fewer_candidates_end_in_zeros(ray):
    found = pool_of()([request(0, 3, candidates=2), request(1, 4, candidates=2)])
    assert found.tolist() == [[3.0, 3.0], [4.0, 4.0]]
    assert isinstance(found, torch.Tensor)
    assert np.isfinite(found.numpy()).all()


def test_a_row_that_an_actor_has_no_room_for_has_no_reward_for_any_candidate(ray):
    pool = pool_of(actors=2)
    for actor in ray.actors:
        actor._scorer = lambda requests: torch.tensor(
            [
                [float("nan") if request.key == 0 else 1.0] * len(request.candidates)
                for request in requests
            ]
        )
    found = pool([request(0, 3, candidates=1), request(1, 3, candidates=2)])
    assert found.isnan().tolist() == [[True, True], [False, False]]
    assert pool.failure_log.counts == {"no room": 1}


def test_a_dead_actor_costs_its_rows_their_rewards_until_it_is_back(ray):
    pool, (actor,) = pool_of(), ray.actors
    pool([request(0, 3)])
    actor.alive = False
    assert pool([request(0, 4)]).isnan().all()
    assert pool([request(0, 5)]).isnan().all()
    assert (pool.failed_calls, pool.failure_log.counts) == (1, {"lost actor": 2})
    actor.alive = True
    actor.restart()
    pool([request(0, 6)])  # finds out that the last look failed, and asks again
    assert pool([request(0, 7)]).tolist() == [[7.0]]


def test_a_late_actor_is_not_waited_for_a_second_time(ray):
    pool, (actor,) = pool_of(), ray.actors
    actor.late = True
    assert pool([request(0, 3)]).isnan().all()
    pool.start_prefill([request(0, 4)])
    assert pool([request(0, 4)]).isnan().all()
    assert (pool.failed_calls, pool.failure_log.counts) == (1, {"late actor": 2})
    actor.late = False
    assert pool([request(0, 5)]).tolist() == [[5.0]]


def test_an_actor_that_was_restarted_between_two_calls_does_not_guess_the_text(ray):
    pool, (actor,) = pool_of(), ray.actors
    pool([request(0, 3)])
    actor.restart()
    assert pool([request(0, 4)]).isnan().all()
    assert pool([request(0, 5)]).tolist() == [[5.0]]
    assert actor.steps[-1] == [(0, [0, 1, 2, 3, 4])]


def test_rows_of_a_dead_actor_move_to_one_that_lives(ray):
    pool = pool_of(actors=2)
    requests = [request(0, 3), request(1, 3)]
    pool(requests)
    ray.actors[0].alive = False
    assert pool(requests).isnan().any(1).sum() == 1
    assert not pool(requests).isnan().any()
    assert pool.failure_log.counts == {"lost actor": 1}


def test_rows_that_look_ahead_are_not_counted_as_unguided(ray):
    pool = pool_of()
    ray.actors[0].alive = False
    pool([request(0, 3, must_finish=False), request(1, 3)])
    assert pool.failure_log.counts == {"lost actor": 1}


def waited(ray, pool, requests):
    """Seconds that one step of the base waits for its rewards."""
    before = ray.clock.now
    pool(requests)
    return ray.clock.now - before


def test_an_actor_that_is_always_late_costs_a_vanishing_share_of_the_time(ray):
    pool, (actor,) = pool_of(clock=ray.clock), ray.actors
    actor.takes, lost = 3.0, 0.0  # it answers `ready`, and every step a second after the deadline
    while ray.clock.now < 7200:
        lost += waited(ray, pool, [request(0, 3)])
        ray.clock.now += 1.0
    assert lost < 0.02 * 7200
    actor.takes, guided = 0.01, ray.clock.now + 201
    while ray.clock.now < guided:
        pool([request(0, 3)])
        ray.clock.now += 1.0
    assert pool([request(0, 3)]).tolist() == [[3.0]]


def test_an_actor_that_was_late_once_is_called_as_soon_as_it_has_answered(ray):
    pool, (actor,) = pool_of(clock=ray.clock), ray.actors
    for _ in range(3):
        actor.takes = 3.0
        assert pool([request(0, 3)]).isnan().all()
        actor.takes = 0.01
        ray.clock.now += 0.5
        assert waited(ray, pool, [request(0, 3)]) == 0
        ray.clock.now += 0.6
        assert pool([request(0, 3)]).tolist() == [[3.0]]


def test_a_step_in_which_the_base_only_reads_prompts_does_not_wait(ray):
    pool, (actor,) = pool_of(clock=ray.clock), ray.actors
    actor.takes = 1.0
    requests = [
        request(0, 3, candidates=0, must_finish=False),
        request(1, 3, candidates=0, must_finish=False),
    ]
    assert waited(ray, pool, requests) == 0
    assert len(actor.steps) == 1  # but the reward model reads them too
    assert pool.failed_calls == 0
    assert waited(ray, pool, [request(0, 3), requests[1]]) == 2.0


def test_rows_that_need_no_reward_are_not_among_those_without_one(ray):
    pool = pool_of()
    ray.actors[0].alive = False
    assert pool([request(0, 3, must_finish=False), request(1, 3)]).isnan().tolist() == [
        [False],
        [True],
    ]


def test_a_step_waits_in_proportion_to_the_actors_last_answers(ray):
    pool, (actor,) = pool_of(clock=ray.clock), ray.actors
    for actor.takes in (0.2, 0.01, 0.01):
        assert pool([request(0, 3)]).tolist() == [[3.0]]
    actor.takes = 3.0
    assert waited(ray, pool, [request(0, 3)]) == pytest.approx(0.8)


def test_an_actor_asks_ray_for_what_the_settings_say(ray):
    pool_of(ray_resources={"num_gpus": 1, "fast": 2})
    assert ray.options["num_gpus"] == 1
    assert ray.options["resources"] == {"fast": 2}
    assert (ray.options["max_restarts"], ray.options["max_task_retries"]) == (-1, 0)


def test_a_cluster_without_what_the_actors_ask_for_is_named_with_what_it_has(ray, monkeypatch):
    get = ray.get

    def waits(refs, timeout=0.0):
        assert timeout > 0
        raise TimeoutError("Get timed out")

    monkeypatch.setattr(ray, "get", waits)
    with pytest.raises(TimeoutError) as refusal:
        pool_of(actors=3, ray_resources={"num_gpus": 1, "fast": 2})
    message = str(refusal.value)
    assert "3 reward actors" in message
    assert "each asks for num_cpus 1, num_gpus 1, fast 2" in message
    assert "the cluster has CPU 2, GPU 0, fast 0." in message
    assert "ray_actors" in message
    assert "ray_resources" in message
    monkeypatch.setattr(ray, "get", get)
    assert pool_of()([request(0, 3)]).tolist() == [[3.0]]


def test_every_actor_gets_the_digest_of_the_servers_adapter(ray):
    pool_of()
    assert DIGEST in ray.given


@pytest.mark.parametrize(("given", "joined"), [("", "local"), ("ray://head:10001",) * 2])
def test_an_empty_address_starts_a_cluster_of_its_own_and_joins_no_other(given, joined):
    calls = []
    _join_ray(SimpleNamespace(init=lambda **arguments: calls.append(arguments)), given)
    assert [call["address"] for call in calls] == [joined]


def test_a_step_looks_at_the_new_tokens_alone(ray):
    pool, (actor,) = pool_of(), ray.actors
    tokens = CountingList(range(1000))
    pool([ScoringRequest(0, tokens, (1.0,), [(1000, (7,))])])
    for _ in range(5):
        stays, tokens.read = len(tokens) - 2, 0
        tokens[-2:] = (8, 9, 10)
        found = pool(
            [ScoringRequest(0, tokens, (1.0,), [(len(tokens), (7,))], num_unchanged=stays)]
        )
        assert found.tolist() == [[float(len(tokens))]]
        assert tokens.read < 10
    assert actor.steps[-1] == [(0, list(tokens))]
    assert actor.num_unchanged[-1] == [len(tokens) - 3]


def test_after_a_step_that_failed_an_actor_has_no_unchanged_tokens(ray):
    pool, (actor,) = pool_of(), ray.actors
    pool([request(0, 3)])
    actor._scorer = None
    pool.start_prefill([ScoringRequest(0, [0, 1, 9], (1.0,))])  # its error is not read
    actor._scorer = actor._lengths
    assert pool([request(0, 4)]).isnan().all()
    assert pool([request(0, 5)]).tolist() == [[5.0]]
    assert actor.num_unchanged[-1] == [0]


def test_a_text_whose_call_could_not_be_made_is_sent_whole_again(ray):
    pool, (actor,) = pool_of(), ray.actors
    pool([request(0, 4)])
    handle, works = pool._actors[0].handle, pool._actors[0].handle.step

    def broken(_updates):
        raise OSError("no connection")

    handle.step = SimpleNamespace(remote=broken)
    with pytest.raises(OSError, match="no connection"):
        pool.start_prefill([ScoringRequest(0, [0, 1, 9], (1.0,))])
    handle.step = works
    assert pool([ScoringRequest(0, [0, 1, 9], (1.0,), [(3, (7,))])]).tolist() == [[3.0]]
    assert actor.steps[-1] == [(0, [0, 1, 9])]


def test_a_row_that_comes_back_to_an_actor_it_left_is_sent_whole(ray):
    pool, (first, second) = pool_of(actors=2), ray.actors
    pool([request(1, 1), request(0, 3)])
    assert second.steps[-1] == [(0, [0, 1, 2])]
    pool.start_prefill([])
    pool([ScoringRequest(0, [0, 8, 9], (1.0,), [(3, (7,))], num_unchanged=1)])
    assert first.steps[-1] == [(0, [0, 8, 9])]
    pool([request(2, 1)])
    pool([request(2, 1), ScoringRequest(0, [0, 8, 9], (1.0,), [(3, (7,))], num_unchanged=3)])
    assert second.steps[-1] == [(0, [0, 8, 9])]


class GrowingRow:
    """A row as the engine keeps it: `num_unchanged` counts from the last step that answered."""

    def __init__(self, rng, key):
        self.rng, self.key = rng, key
        self.tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
        self.num_unchanged = 0

    def goes_on(self):
        keep = max(1, len(self.tokens) - self.rng.choice([0, 0, 1, 3]))
        self.tokens[keep:] = [self.rng.randrange(3) for _ in range(self.rng.choice([0, 1, 2]))]
        self.num_unchanged = min(self.num_unchanged, keep)

    def request(self):
        return ScoringRequest(
            self.key,
            self.tokens,
            (1.0,),
            [(len(self.tokens), (7,))],
            num_unchanged=self.num_unchanged,
        )


def trouble(rng, actors, handles):
    """Actors die, restart, hang, fail in a step; calls cannot be made."""
    for actor, handle in zip(actors, handles, strict=True):
        fate = rng.random()
        actor.late = fate < 0.05
        if 0.05 < fate < 0.1:
            actor.alive = False
        elif not actor.alive and fate < 0.6:
            actor.alive = True
            actor.restart()
        actor._scorer = None if 0.9 < fate < 0.95 else actor._lengths
        handle.unreachable = fate > 0.97


def unreachable_at_times(handle):
    call, handle.unreachable = handle.step.remote, False

    def step(updates):
        if handle.unreachable:
            raise OSError("no connection")
        return call(updates)

    handle.step = SimpleNamespace(remote=step)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_fails_no_actor_scores_a_text_that_is_not_the_rows(ray, seed):
    rng, clock = random.Random(seed), ray.clock
    pool = pool_of(actors=rng.choice([1, 2, 3]), clock=clock)
    handles = [actor.handle for actor in pool._actors]
    for handle in handles:
        unreachable_at_times(handle)
    rows, answered = {}, 0
    for number in range(300):
        trouble(rng, ray.actors, handles)
        clock.now += rng.choice([0.1, 1.0, 10.0])
        if rng.random() < 0.1 or not rows:
            rows[number] = GrowingRow(rng, number)
        if rng.random() < 0.08:
            del rows[rng.choice(list(rows))]
        asked = [row for row in rows.values() if rng.random() < 0.8]
        for row in asked:
            row.goes_on()
        texts = {row.key: list(row.tokens) for row in asked}
        for actor in ray.actors:
            actor.steps.clear()
        try:
            with suppress(OSError):
                if rng.random() < 0.5:
                    pool.start_prefill([row.request() for row in asked if rng.random() < 0.9])
            found = pool([row.request() for row in asked]) if asked else []
        except OSError:
            continue
        finally:
            sent = [pair for actor in ray.actors for step in actor.steps for pair in step]
            assert all(texts[key] == tokens for key, tokens in sent)
        for row, reward in zip(asked, found, strict=True):
            row.num_unchanged = len(row.tokens)
            answered += not reward.isnan().any()
            assert reward.isnan().any() or reward.tolist() == [len(row.tokens)]
    assert answered > 100
