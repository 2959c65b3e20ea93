"""The pool of reward actors, with Ray played by a stand-in: who gets what, and what failures cost."""

from __future__ import annotations

import random
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from watched import Watched

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.config import PADConfig
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.ray_actors import PersRMActor, RayRewardScorer, _join
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest

DIGEST = "0" * 64


class RayError(Exception):
    """What Ray raises."""


class Clock:
    """Seconds that pass only when a test says so, or where somebody waits."""

    now = 0.0

    def __call__(self):
        return self.now


class Actor(PersRMActor):
    """The actor's own bookkeeping over a scorer that rewards a candidate with the text's length."""

    def __init__(self, *_):
        self.alive, self.late, self.steps, self.stays = True, False, [], []
        self.takes, self.free = 0.0, 0.0  # seconds a step; when it has done what it was asked
        self.restart()

    def restart(self):
        self._tokens, self._busy = {}, []
        self._scorer = self._lengths

    def _lengths(self, asks):
        self.steps.append([(ask.key, list(ask.tokens)) for ask in asks])
        self.stays.append([ask.stays for ask in asks])
        width = max((len(ask.changes) for ask in asks), default=0)
        return torch.tensor([[float(len(ask.tokens))] * width for ask in asks])

    def ready(self):
        return {}


class FakeRay:
    """Calls run when they are made; a dead actor's fail, a late one's wait, a slow one's take their time."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self):
        self.actors, self.options, self.given = [], None, None
        self.clock = Clock()

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
        actor = Actor()
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
            except Exception as error:  # noqa: BLE001, Ray hands it to whoever gets the result
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


def scores(actors=1, clock=time.monotonic, **settings):
    pad = PADConfig("/a", engine="ray", ray_actors=actors, **settings)
    return RayRewardScorer(pad, DIGEST, torch.float32, FailureLog(lambda _: None), clock=clock)


def ask(key, length, *, changes=1, must=True):
    return ScoringRequest(key, list(range(length)), (1.0,), [(length, (7,))] * changes, must)


def test_only_new_tokens_cross_the_wire_and_the_actor_has_the_whole_text(ray):
    pool, (actor,) = scores(), ray.actors
    sent = []
    step = actor.step
    actor.step = lambda messages: sent.append(messages) or step(messages)
    assert pool([ask(0, 5)]).tolist() == [[5.0]]
    pool.start_prefill([ScoringRequest(0, [*range(6)], (1.0,))])
    assert pool([ask(0, 6)]).tolist() == [[6.0]]
    assert [(m.keep, m.added) for (m,) in sent] == [(0, (0, 1, 2, 3, 4)), (5, (5,)), (6, ())]
    assert actor.steps[-1] == [(0, [0, 1, 2, 3, 4, 5])]


def test_rows_are_spread_and_stay_with_their_actor(ray):
    pool = scores(actors=2)
    asks = [ask(key, 3) for key in range(4)]
    pool(asks)
    pool([asks[3], asks[0]])
    first, second = ([{key for key, _ in step} for step in one.steps] for one in ray.actors)
    assert [len(step) for step in (*first[:1], *second[:1])] == [2, 2]
    assert first[1] <= first[0]
    assert second[1] <= second[0]


def test_rows_of_fewer_candidates_end_in_zeros(ray):
    found = scores()([ask(0, 3, changes=2), ask(1, 4, changes=2)])
    assert found.tolist() == [[3.0, 3.0], [4.0, 4.0]]
    assert isinstance(found, torch.Tensor)
    assert np.isfinite(found.numpy()).all()


def test_a_row_that_an_actor_has_no_room_for_has_no_reward_for_any_candidate(ray):
    pool = scores(actors=2)
    for actor in ray.actors:
        actor._scorer = lambda asks: torch.tensor(
            [[float("nan") if ask.key == 0 else 1.0] * len(ask.changes) for ask in asks]
        )
    found = pool([ask(0, 3, changes=1), ask(1, 3, changes=2)])
    assert found.isnan().tolist() == [[True, True], [False, False]]
    assert pool.failure_log.counts == {"no room": 1}


def test_a_dead_actor_costs_its_rows_their_rewards_until_it_is_back(ray):
    pool, (actor,) = scores(), ray.actors
    pool([ask(0, 3)])
    actor.alive = False
    assert pool([ask(0, 4)]).isnan().all()
    assert pool([ask(0, 5)]).isnan().all()
    assert (pool.failed_calls, pool.failure_log.counts) == (1, {"lost actor": 2})
    actor.alive = True
    actor.restart()
    pool([ask(0, 6)])  # finds out that the last look failed, and asks again
    assert pool([ask(0, 7)]).tolist() == [[7.0]]


def test_a_late_actor_is_not_waited_for_a_second_time(ray):
    pool, (actor,) = scores(), ray.actors
    actor.late = True
    assert pool([ask(0, 3)]).isnan().all()
    pool.start_prefill([ask(0, 4)])
    assert pool([ask(0, 4)]).isnan().all()
    assert (pool.failed_calls, pool.failure_log.counts) == (1, {"late actor": 2})
    actor.late = False
    assert pool([ask(0, 5)]).tolist() == [[5.0]]


def test_an_actor_that_was_restarted_between_two_calls_does_not_guess_the_text(ray):
    pool, (actor,) = scores(), ray.actors
    pool([ask(0, 3)])
    actor.restart()
    assert pool([ask(0, 4)]).isnan().all()
    assert pool([ask(0, 5)]).tolist() == [[5.0]]
    assert actor.steps[-1] == [(0, [0, 1, 2, 3, 4])]


def test_rows_of_a_dead_actor_move_to_one_that_lives(ray):
    pool = scores(actors=2)
    asks = [ask(0, 3), ask(1, 3)]
    pool(asks)
    ray.actors[0].alive = False
    assert pool(asks).isnan().any(1).sum() == 1
    assert not pool(asks).isnan().any()
    assert pool.failure_log.counts == {"lost actor": 1}


def test_rows_that_look_ahead_are_not_counted_as_unguided(ray):
    pool = scores()
    ray.actors[0].alive = False
    pool([ask(0, 3, must=False), ask(1, 3)])
    assert pool.failure_log.counts == {"lost actor": 1}


def waited(ray, pool, asks):
    """Seconds that one step of the base waits for its rewards."""
    before = ray.clock.now
    pool(asks)
    return ray.clock.now - before


def test_an_actor_that_is_always_late_costs_a_vanishing_share_of_the_time(ray):
    pool, (actor,) = scores(clock=ray.clock), ray.actors
    actor.takes, lost = 3.0, 0.0  # it answers `ready`, and every step a second after the deadline
    while ray.clock.now < 7200:
        lost += waited(ray, pool, [ask(0, 3)])
        ray.clock.now += 1.0
    assert lost < 0.02 * 7200
    actor.takes, guided = 0.01, ray.clock.now + 201
    while ray.clock.now < guided:
        pool([ask(0, 3)])
        ray.clock.now += 1.0
    assert pool([ask(0, 3)]).tolist() == [[3.0]]


def test_an_actor_that_was_late_once_is_asked_as_soon_as_it_has_answered(ray):
    pool, (actor,) = scores(clock=ray.clock), ray.actors
    for _ in range(3):
        actor.takes = 3.0
        assert pool([ask(0, 3)]).isnan().all()
        actor.takes = 0.01
        ray.clock.now += 0.5
        assert waited(ray, pool, [ask(0, 3)]) == 0
        ray.clock.now += 0.6
        assert pool([ask(0, 3)]).tolist() == [[3.0]]


def test_a_step_in_which_the_base_only_reads_prompts_does_not_wait(ray):
    pool, (actor,) = scores(clock=ray.clock), ray.actors
    actor.takes = 1.0
    asks = [ask(0, 3, changes=0, must=False), ask(1, 3, changes=0, must=False)]
    assert waited(ray, pool, asks) == 0
    assert len(actor.steps) == 1  # but the reward model reads them too
    assert pool.failed_calls == 0
    assert waited(ray, pool, [ask(0, 3), asks[1]]) == 2.0


def test_rows_that_need_no_reward_are_not_among_those_without_one(ray):
    pool = scores()
    ray.actors[0].alive = False
    assert pool([ask(0, 3, must=False), ask(1, 3)]).isnan().tolist() == [[False], [True]]


def test_a_step_waits_in_proportion_to_the_actors_last_answers(ray):
    pool, (actor,) = scores(clock=ray.clock), ray.actors
    for actor.takes in (0.2, 0.01, 0.01):
        assert pool([ask(0, 3)]).tolist() == [[3.0]]
    actor.takes = 3.0
    assert waited(ray, pool, [ask(0, 3)]) == pytest.approx(0.8)


def test_an_actor_asks_ray_for_what_the_settings_say(ray):
    scores(ray_resources={"num_gpus": 1, "fast": 2})
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
        scores(actors=3, ray_resources={"num_gpus": 1, "fast": 2})
    said = str(refusal.value)
    assert "3 reward actors" in said
    assert "each asks for num_cpus 1, num_gpus 1, fast 2" in said
    assert "the cluster has CPU 2, GPU 0, fast 0." in said
    assert "ray_actors" in said
    assert "ray_resources" in said
    monkeypatch.setattr(ray, "get", get)
    assert scores()([ask(0, 3)]).tolist() == [[3.0]]


def test_every_actor_is_told_which_adapter_the_server_has(ray):
    scores()
    assert DIGEST in ray.given


def test_an_actor_whose_host_has_another_adapter_refuses_to_start_and_names_both(tmp_path):
    base = tiny.checkpoint("llama", tmp_path / "base")
    folder = tiny.write_adapter(base, tmp_path / "adapter", fork_layer=2, std=0.1)
    own = load_adapter(folder).digest
    settings = {"adapter": str(folder), "backbone": str(base), "cache_gib": 0.01, "device": "cpu"}
    assert PersRMActor(settings, own, "float32").ready()["steps"] == 0
    with pytest.raises(ValueError, match=f"{own}.*{DIGEST}.*Copy") as refusal:
        PersRMActor(settings, DIGEST, "float32")
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize(("given", "joined"), [("", "local"), ("ray://head:10001",) * 2])
def test_an_empty_address_starts_a_cluster_of_its_own_and_joins_no_other(given, joined):
    calls = []
    _join(SimpleNamespace(init=lambda **arguments: calls.append(arguments)), given)
    assert [call["address"] for call in calls] == [joined]


def test_a_step_looks_at_the_new_tokens_alone(ray):
    pool, (actor,) = scores(), ray.actors
    tokens = Watched(range(1000))
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
    assert actor.stays[-1] == [len(tokens) - 3]


def test_after_a_step_that_failed_an_actor_has_nothing_that_stays(ray):
    pool, (actor,) = scores(), ray.actors
    pool([ask(0, 3)])
    actor._scorer = None
    pool.start_prefill([ScoringRequest(0, [0, 1, 9], (1.0,))])  # nobody looks at what becomes of it
    actor._scorer = actor._lengths
    assert pool([ask(0, 4)]).isnan().all()
    assert pool([ask(0, 5)]).tolist() == [[5.0]]
    assert actor.stays[-1] == [0]


def test_a_text_whose_call_could_not_be_made_is_sent_whole_again(ray):
    pool, (actor,) = scores(), ray.actors
    pool([ask(0, 4)])
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
    pool, (first, second) = scores(actors=2), ray.actors
    pool([ask(1, 1), ask(0, 3)])
    assert second.steps[-1] == [(0, [0, 1, 2])]
    pool.start_prefill([])
    pool([ScoringRequest(0, [0, 8, 9], (1.0,), [(3, (7,))], num_unchanged=1)])
    assert first.steps[-1] == [(0, [0, 8, 9])]
    pool([ask(2, 1)])
    pool([ask(2, 1), ScoringRequest(0, [0, 8, 9], (1.0,), [(3, (7,))], num_unchanged=3)])
    assert second.steps[-1] == [(0, [0, 8, 9])]


class Row:
    """A row as the engine keeps it: `stays` counts from the last step that answered."""

    def __init__(self, rng, key):
        self.rng, self.key = rng, key
        self.tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 9))]
        self.stays = 0

    def goes_on(self):
        keep = max(1, len(self.tokens) - self.rng.choice([0, 0, 1, 3]))
        self.tokens[keep:] = [self.rng.randrange(3) for _ in range(self.rng.choice([0, 1, 2]))]
        self.stays = min(self.stays, keep)

    def ask(self):
        return ScoringRequest(
            self.key, self.tokens, (1.0,), [(len(self.tokens), (7,))], num_unchanged=self.stays
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
def test_whatever_fails_no_actor_is_asked_about_a_text_that_is_not_the_rows(ray, seed):
    rng, clock = random.Random(seed), ray.clock
    pool = scores(actors=rng.choice([1, 2, 3]), clock=clock)
    handles = [actor.handle for actor in pool._actors]
    for handle in handles:
        unreachable_at_times(handle)
    rows, answered = {}, 0
    for number in range(300):
        trouble(rng, ray.actors, handles)
        clock.now += rng.choice([0.1, 1.0, 10.0])
        if rng.random() < 0.1 or not rows:
            rows[number] = Row(rng, number)
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
                    pool.start_prefill([row.ask() for row in asked if rng.random() < 0.9])
            found = pool([row.ask() for row in asked]) if asked else []
        except OSError:
            continue
        finally:
            told = [pair for actor in ray.actors for step in actor.steps for pair in step]
            assert all(texts[key] == tokens for key, tokens in told)
        for row, reward in zip(asked, found, strict=True):
            row.stays = len(row.tokens)
            answered += not reward.isnan().any()
            assert reward.isnan().any() or reward.tolist() == [len(row.tokens)]
    assert answered > 100
