"""The pool of reward actors, with Ray played by a stand-in: who gets what, and what failures cost."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from watched import Watched

from pad_vllm.config import PADConfig
from pad_vllm.engines.ray import PersRMActor, RayScores, _join
from pad_vllm.engines.reward_model.ask import Ask


class RayError(Exception):
    """What Ray raises."""


class Actor(PersRMActor):
    """The actor's own bookkeeping over a scorer that rewards a candidate with the text's length."""

    def __init__(self, *_):
        self.alive, self.late, self.steps, self.stays = True, False, [], []
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
    """Calls run when they are made; a dead actor's fail, a late one's wait."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self):
        self.actors, self.options = [], None

    def is_initialized(self):
        return True

    def remote(self, _cls):
        return SimpleNamespace(options=self._options)

    def _options(self, **options):
        self.options = options
        return SimpleNamespace(remote=self._make)

    def _make(self, *_given):
        actor = Actor()
        self.actors.append(actor)
        return SimpleNamespace(
            **{name: self._method(actor, name) for name in ("step", "ready", "busy")}
        )

    def _method(self, actor, name):
        def call(*given):
            if not actor.alive:
                return actor, RayError("dead")
            if actor.late:
                return actor, TimeoutError("late")
            try:
                return actor, getattr(actor, name)(*given)
            except Exception as error:  # noqa: BLE001, Ray hands it to whoever gets the result
                return actor, RayError(str(error))

        return SimpleNamespace(remote=call)

    def get(self, ref, timeout=None):
        if isinstance(ref, list):
            return [self.get(one) for one in ref]
        actor, found = ref
        if isinstance(found, TimeoutError) and not actor.late:
            return {}  # the answer has come in the meantime
        if isinstance(found, Exception):
            raise found
        return found

    def wait(self, refs, timeout):
        actor, found = refs[0]
        done = not (isinstance(found, TimeoutError) and actor.late)
        return (refs, []) if done else ([], refs)


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def scores(actors=1, **settings):
    pad = PADConfig("/a", engine="ray", ray_actors=actors, **settings)
    return RayScores(pad, torch.float32, lambda _: None)


def ask(key, length, *, changes=1, must=True):
    return Ask(key, list(range(length)), (1.0,), [(length, (7,))] * changes, must)


def test_only_new_tokens_cross_the_wire_and_the_actor_has_the_whole_text(ray):
    pool, (actor,) = scores(), ray.actors
    sent = []
    step = actor.step
    actor.step = lambda messages: sent.append(messages) or step(messages)
    assert pool([ask(0, 5)]).tolist() == [[5.0]]
    pool.begin([Ask(0, [*range(6)], (1.0,))])
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


def test_a_dead_actor_costs_its_rows_their_rewards_until_it_is_back(ray):
    pool, (actor,) = scores(), ray.actors
    pool([ask(0, 3)])
    actor.alive = False
    assert pool([ask(0, 4)]).isnan().all()
    assert pool([ask(0, 5)]).isnan().all()
    assert (pool.failures, pool.unguided) == (1, 2)
    actor.alive = True
    actor.restart()
    pool([ask(0, 6)])  # finds out that the last look failed, and asks again
    assert pool([ask(0, 7)]).tolist() == [[7.0]]


def test_a_late_actor_is_not_waited_for_a_second_time(ray):
    pool, (actor,) = scores(), ray.actors
    actor.late = True
    assert pool([ask(0, 3)]).isnan().all()
    pool.begin([ask(0, 4)])
    assert pool([ask(0, 4)]).isnan().all()
    assert pool.failures == 1
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
    assert pool.unguided == 1


def test_rows_that_look_ahead_are_not_counted_as_unguided(ray):
    pool = scores()
    ray.actors[0].alive = False
    pool([ask(0, 3, must=False), ask(1, 3)])
    assert pool.unguided == 1


def test_an_actor_asks_ray_for_what_the_settings_say(ray):
    scores(ray_resources={"num_gpus": 1, "fast": 2})
    assert ray.options["num_gpus"] == 1
    assert ray.options["resources"] == {"fast": 2}
    assert (ray.options["max_restarts"], ray.options["max_task_retries"]) == (-1, 0)


@pytest.mark.parametrize(("given", "joined"), [("", "local"), ("ray://head:10001",) * 2])
def test_an_empty_address_starts_a_cluster_of_its_own_and_joins_no_other(given, joined):
    calls = []
    _join(SimpleNamespace(init=lambda **arguments: calls.append(arguments)), given)
    assert [call["address"] for call in calls] == [joined]


def test_a_step_looks_at_the_new_tokens_alone(ray):
    pool, (actor,) = scores(), ray.actors
    tokens = Watched(range(1000))
    pool([Ask(0, tokens, (1.0,), [(1000, (7,))])])
    for _ in range(5):
        stays, tokens.read = len(tokens) - 2, 0
        tokens[-2:] = (8, 9, 10)
        found = pool([Ask(0, tokens, (1.0,), [(len(tokens), (7,))], stays=stays)])
        assert found.tolist() == [[float(len(tokens))]]
        assert tokens.read < 10
    assert actor.steps[-1] == [(0, list(tokens))]
    assert actor.stays[-1] == [len(tokens) - 3]


def test_after_a_step_that_failed_an_actor_has_nothing_that_stays(ray):
    pool, (actor,) = scores(), ray.actors
    pool([ask(0, 3)])
    actor._scorer = None
    pool.begin([Ask(0, [0, 1, 9], (1.0,))])  # nobody looks at what becomes of it
    actor._scorer = actor._lengths
    assert pool([ask(0, 4)]).isnan().all()
    assert pool([ask(0, 5)]).tolist() == [[5.0]]
    assert actor.stays[-1] == [0]
