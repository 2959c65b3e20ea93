"""The `ray` engine: the reward model of `resident` in a pool of Ray actors, on other GPUs or hosts.

In: the asks of a step. Out: rewards, NaN for rows whose actor is down or late. A row stays with the actor
that holds its cache. The text of a step is sent when the base's forward starts (`begin`), so that both
models run at once; the candidates follow when the logits are there. Only new tokens are sent.

A step waits only for actors that have rows to sample now, and for each as long as patience.py says: in
proportion to its last answers, at most `ray_deadline_s`. One that was late is asked again once it has
answered, and after a pause that grows while it stays late.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pad_vllm.config import PADConfig
from pad_vllm.engines.actor_timeout import ActorTimeout
from pad_vllm.engines.failure_log import FailureLog
from pad_vllm.engines.reward_engine import widen_rewards
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest, common_prefix_length
from pad_vllm.text.incremental_encoding import TokenChange
from pad_vllm.wording import listed

NAN = float("nan")
_START_S = 600.0  # longest wait for an actor to load its model at start-up


@dataclass(frozen=True)
class RowUpdate:
    """An Ask without the tokens that the actor has."""

    key: int
    num_kept: int
    """How many of the tokens that the actor has for the row stay."""

    added: tuple[int, ...]
    """The tokens after those."""

    w: tuple[float, ...]
    candidates: tuple[TokenChange, ...]
    must_finish: bool

    def apply_to(self, tokens: list[int]) -> list[int]:
        """The row's tokens, changed in place. Raises LookupError where those that should stay are gone."""
        if (
            len(tokens) < self.num_kept
        ):  # Ray restarted the actor between two calls, or a step failed
            raise LookupError(f"row {self.key}: {len(tokens)} of {self.num_kept} tokens are here")
        tokens[self.num_kept :] = self.added
        return tokens


class PersRMActor:
    """One reward model in a process of its own, started by Ray. Imports no vLLM."""

    def __init__(self, settings: dict[str, Any], digest: str, dtype: str) -> None:
        """digest: of the server's adapter; raises ValueError where this host's is another one."""
        from pad_vllm.adapter.adapter_folder import load_adapter
        from pad_vllm.engines.reward_model.scorer_loader import (
            make_reward_scorer,
            require_reward_backbone,
        )

        pad = PADConfig(**settings)
        device = pad.device or ("cuda" if torch.cuda.is_available() else "cpu")
        adapter = load_adapter(pad.adapter)
        _require_digest(pad.adapter, adapter.digest, digest)
        require_reward_backbone(pad, adapter)  # of the files that this host has
        self._scorer = make_reward_scorer(
            pad,
            adapter,
            FailureLog(logging.getLogger(__name__).warning),
            dtype=getattr(torch, dtype),
            device=torch.device(device),
        )
        self._tokens: dict[int, list[int]] = {}
        self._busy: deque[tuple[float, float]] = deque(maxlen=1000)

    def busy(self) -> list[tuple[float, float]]:
        """When the last steps began and ended, in Unix time."""
        return list(self._busy)

    def step(self, updates: list[RowUpdate]) -> Any:
        """Rewards [G, K] as numpy. Raises LookupError where tokens that it should have are gone."""
        begun = time.time()
        # A step that fails leaves none: they come whole again.
        known, self._tokens = self._tokens, {}
        tokens = {update.key: update.apply_to(known.get(update.key, [])) for update in updates}
        asks = [
            ScoringRequest(u.key, tokens[u.key], u.w, u.candidates, u.must_finish, u.num_kept)
            for u in updates
        ]
        rewards = self._scorer(asks).cpu().numpy()
        self._tokens = tokens
        self._busy.append((begun, time.time()))
        return rewards

    def pid(self) -> int:
        """Its process id."""
        return os.getpid()

    def ready(self) -> dict[str, Any]:
        """Counts of its scorer; answers once the model is loaded."""
        return {**vars(self._scorer.counts), "used_blocks": self._scorer.used_blocks}


@dataclass(eq=False)
class PooledActor:
    handle: Any
    number: int
    timeout: ActorTimeout
    sent: dict[int, list[int]] = field(default_factory=dict)  # row -> the tokens that it has
    back: Any = None  # while it is down: the ref that is done when it is up again
    error: Exception | None = None  # why it is down

    def step(self, asks: Sequence[ScoringRequest]) -> Any:
        """Send the asks, as updates of what was sent before: the ref of their rewards."""
        before, sent = self.sent, {}
        self.sent = {}  # should the call not be made, what the actor has is no longer known
        made = []
        for ask in asks:
            known = sent[ask.key] = before.get(ask.key, [])
            keep = common_prefix_length(known, ask.tokens, ask.num_unchanged)
            added = tuple(ask.tokens[keep:])
            known[keep:] = added
            made.append(
                RowUpdate(ask.key, keep, added, ask.w, tuple(ask.candidates), ask.must_finish)
            )
        ref = self.handle.step.remote(made)
        self.sent = sent
        return ref

    def up(self, ray: Any) -> bool:
        """Whether it takes updates; after a failure, once it has answered again and its pause is over."""
        if (
            self.back is not None
            and not self.timeout.paused
            and ray.wait([self.back], timeout=0)[0]
        ):
            try:
                ray.get(self.back)
                self.back = self.error = None
            except ray.exceptions.RayError:
                self.back = self.handle.ready.remote()  # dead, and Ray has not restarted it yet
        return self.back is None

    def down(self, error: Exception) -> None:
        """It failed or was late, and may have lost its rows: send them whole when it has answered again."""
        self.error = error
        self.sent = {}
        self.timeout.record_failure()
        self.back = self.handle.ready.remote()


class RayRewardScorer:
    """engines.resident.Scores over the pool."""

    def __init__(
        self,
        pad: PADConfig,
        digest: str,
        dtype: torch.dtype,
        declined: FailureLog,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Joins or starts Ray, makes the actors, waits until their models are loaded. Raises Ray's errors,
        and TimeoutError where it waits too long; digest: of the adapter that every actor must find under
        its path.
        """
        import ray

        self._ray, self.failure_log, self._clock = ray, declined, clock
        if not ray.is_initialized():
            _join(ray, pad.ray_address)
        settings = {**vars(pad), "ray_resources": dict(pad.ray_resources)}
        # Restarted without limit; a call is never retried, as it would come too late for its step.
        options = {"max_restarts": -1, "max_task_retries": 0, **_options(pad.ray_resources)}
        made = ray.remote(PersRMActor).options(**options)
        self._actors = [
            PooledActor(
                made.remote(settings, digest, str(dtype).removeprefix("torch.")),
                number,
                ActorTimeout(pad.ray_deadline_s, clock),
            )
            for number in range(pad.ray_actors)
        ]
        try:
            ray.get([actor.handle.ready.remote() for actor in self._actors], timeout=_START_S)
        except TimeoutError as error:
            raise TimeoutError(_not_started(pad, ray.cluster_resources())) from error
        self._home: dict[int, PooledActor] = {}
        self.failed_calls = 0

    def busy(self) -> list[list[tuple[float, float]]]:
        """When each actor's last steps began and ended, in Unix time."""
        return self._ray.get([actor.handle.busy.remote() for actor in self._actors])

    def start_prefill(self, asks: Sequence[ScoringRequest]) -> None:
        """The base's forward starts: send the rows' tokens, without waiting."""
        for actor, places in self._routed(asks).items():
            if actor.up(self._ray):
                actor.step([asks[place] for place in places])

    def __call__(self, asks: Sequence[ScoringRequest]) -> Tensor:
        """Rewards [G, K]; NaN for `must` rows of an actor that is down, or does not answer in time."""
        result = torch.zeros(len(asks), max((len(a.candidates) for a in asks), default=0))
        result[[place for place, ask in enumerate(asks) if ask.must_finish]] = NAN
        refs = {}
        routed = self._routed(asks)
        for actor, places in routed.items():
            if actor.up(self._ray):
                ref = actor.step([asks[place] for place in places])
                if any(asks[place].must_finish for place in places):  # the others need no answer
                    refs[actor] = ref
        begun = self._clock()
        for actor, ref in refs.items():
            self._collect(actor, ref, routed[actor], result, begun)
        missing = result.isnan().any(1)
        for actor, places in routed.items():
            self._count(actor, int(missing[places].sum()))
        return result

    def _collect(
        self, actor: PooledActor, ref: Any, places: list[int], result: Tensor, begun: float
    ) -> None:
        wait = begun + actor.timeout.wait_seconds - self._clock()
        try:
            rewards = self._ray.get(ref, timeout=max(wait, 0.0))
        except Exception as error:  # noqa: BLE001, dead, late, restarting or failed: all leave rows unguided
            self.failed_calls += 1
            actor.down(error)
            return
        actor.timeout.record_answer(self._clock() - begun)
        result[places] = widen_rewards(torch.from_numpy(rewards.copy()), result.shape[1])

    def _count(self, actor: PooledActor, rows: int) -> None:
        if actor.back is None:
            self.failure_log.add(
                "no room", rows, f"reward actor {actor.number} has no room for a row"
            )
        else:
            late = isinstance(actor.error, TimeoutError)
            said = f"reward actor {actor.number} is down: its rows have no rewards until it is back"
            self.failure_log.add("late actor" if late else "lost actor", rows, said, actor.error)

    def _routed(self, asks: Sequence[ScoringRequest]) -> dict[PooledActor, list[int]]:
        """Every row's actor: the one that has its cache, else the one with the fewest rows."""
        home = {ask.key: self._home.get(ask.key) for ask in asks}
        load = dict.fromkeys(self._actors, 0)
        if any(actor.back is None for actor in self._actors):  # rows leave one that is down
            home = {
                key: None if actor is None or actor.back is not None else actor
                for key, actor in home.items()
            }
        for actor in home.values():
            if actor is not None:
                load[actor] += 1
        places: dict[PooledActor, list[int]] = {}
        for place, ask in enumerate(asks):
            actor = home[ask.key]
            if actor is None:
                actor = home[ask.key] = min(
                    load, key=lambda actor: (actor.back is not None, load[actor])
                )
                load[actor] += 1
            places.setdefault(actor, []).append(place)
        self._home = {key: actor for key, actor in home.items() if actor is not None}
        for actor in self._actors:
            if actor not in places:  # its rows left: one that comes back may have been elsewhere
                actor.sent = {}
        return places


def _require_digest(path: str, here: str, wanted: str) -> None:
    if here != wanted:
        raise ValueError(
            f"the adapter {path} on the actor's host {platform.node()} has digest {here}; accepted is "
            f"the server's, {wanted}. Copy the server's folder to that host, or name one that all "
            "hosts of the cluster share."
        )


def _join(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False, "namespace": "pad_vllm"}
    if address:
        ray.init(address=address, **quiet)
    else:  # without "local" Ray joins RAY_ADDRESS, or whatever cluster runs on this machine
        ray.init(address="local", include_dashboard=False, **quiet)


def _not_started(pad: PADConfig, cluster: dict[str, float]) -> str:
    asked = {"num_cpus": 1, **pad.ray_resources}
    names = [_CLUSTERS.get(name, name) for name in asked]
    has = {name: cluster.get(name, 0.0) for name in names}
    return (
        f"the {pad.ray_actors} reward actors have not all started in {_START_S:g} s: each asks for "
        f"{_amounts(asked)}, and the cluster has {_amounts(has)}. Ask for less (ray_actors and "
        "ray_resources in additional_config['pad']), or add hosts; `ray status` says what is in use. "
        "Where there is enough, the reward model loads too slowly: put its files on the hosts' own disks."
    )


_CLUSTERS = {"num_cpus": "CPU", "num_gpus": "GPU"}
"""Ray's name of a resource in a request -> its name in a cluster."""


def _amounts(resources: Mapping[str, float]) -> str:
    return listed(f"{name} {amount:g}" for name, amount in resources.items())


def _options(resources: Any) -> dict[str, Any]:
    """Ray's own names as they are, the rest as custom resources."""
    own = {name: resources[name] for name in _CLUSTERS if name in resources}
    custom = {name: amount for name, amount in resources.items() if name not in own}
    return {"num_cpus": 1, **own, **({"resources": custom} if custom else {})}
