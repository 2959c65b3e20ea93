"""The `ray` engine: the reward model of `resident` in a pool of Ray actors, on other GPUs or hosts.

In: the scoring requests of a step. Out: rewards, NaN for rows of an actor that is down or late. A row stays
with the actor that has its KV cache. The tokens of a step are sent when the base's forward starts
(`start_prefill`), so that both models run at once; the candidates follow when the logits are computed. Only
new tokens are sent.

A step waits only for actors that have rows to sample now, and for each as long as actor_timeout.py says: in
proportion to its last answers, at most `ray_deadline_s`. An actor that was late gets rows again once it has
answered, and after a pause that grows while it stays late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pad_vllm.config import PADConfig
from pad_vllm.engines.actor_timeout import ActorTimeout
from pad_vllm.engines.failure_log import FailureLog, Reason
from pad_vllm.engines.reward_actor_process import PersRMActor, RowUpdate
from pad_vllm.engines.reward_engine import widen_rewards
from pad_vllm.engines.reward_model.scoring_request import ScoringRequest, common_prefix_length
from pad_vllm.wording import listed

NAN = float("nan")
_START_S = 600.0  # longest wait for the actors to load their models at start-up


class RayRewardScorer:
    """Rewards of one step's requests, from the pool: the scorer that ResidentRewards calls."""

    def __init__(
        self,
        pad: PADConfig,
        digest: str,
        dtype: torch.dtype,
        failure_log: FailureLog,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join or start Ray, make the actors, and wait until their models are loaded.

        Args:
            pad: the server's settings.
            digest: of the adapter that every actor must find under its path.
            dtype: the reward models' type.
            failure_log: counts the rows that get no rewards.
            clock: gives seconds.

        Raises:
            TimeoutError: the actors have not all loaded their models in 10 minutes.
            ray.exceptions.RayError: Ray or an actor failed.
        """
        import ray

        self._ray, self.failure_log, self._clock = ray, failure_log, clock
        if not ray.is_initialized():
            _join_ray(ray, pad.ray_address)
        settings = {**vars(pad), "ray_resources": dict(pad.ray_resources)}
        # Restarted without limit; a call is never retried, as it would come too late for its step.
        options = {"max_restarts": -1, "max_task_retries": 0, **_ray_options(pad.ray_resources)}
        actor_class = ray.remote(PersRMActor).options(**options)
        self._actors = [
            PooledActor(
                actor_class.remote(settings, digest, str(dtype).removeprefix("torch.")),
                number,
                ActorTimeout(pad.ray_deadline_s, clock),
            )
            for number in range(pad.ray_actors)
        ]
        try:
            ray.get([actor.handle.ready.remote() for actor in self._actors], timeout=_START_S)
        except TimeoutError as error:
            raise TimeoutError(_not_started(pad, ray.cluster_resources())) from error
        self._actor_of_row: dict[int, PooledActor] = {}
        self.failed_calls = 0
        """Calls that raised an error or were not answered in time, since the start."""

    def start_prefill(self, requests: Sequence[ScoringRequest]) -> None:
        """Send the rows' tokens to their actors, and do not wait: called when the base's forward starts."""
        for actor, indices in self._route(requests).items():
            if actor.check_up(self._ray):
                actor.send_step([requests[index] for index in indices])

    def __call__(self, requests: Sequence[ScoringRequest]) -> Tensor:
        """Rewards [G, K] float32 on the CPU; NaN in `must_finish` rows of an actor that is down or late."""
        K = max((len(request.candidates) for request in requests), default=0)
        rewards = torch.zeros(len(requests), K)
        rewards[[index for index, request in enumerate(requests) if request.must_finish]] = NAN
        pending = {}
        indices_of = self._route(requests)
        for actor, indices in indices_of.items():
            if actor.check_up(self._ray):
                ref = actor.send_step([requests[index] for index in indices])
                # The step needs no answer for rows that are only prefilled.
                if any(requests[index].must_finish for index in indices):
                    pending[actor] = ref
        begun = self._clock()
        for actor, ref in pending.items():
            self._collect(actor, ref, indices_of[actor], rewards, begun)
        missing = rewards.isnan().any(1)
        for actor, indices in indices_of.items():
            self._count_missing(actor, int(missing[indices].sum()))
        return rewards

    def busy(self) -> list[list[tuple[float, float]]]:
        """Begin and end of each actor's last steps, in Unix time (seconds)."""
        return self._ray.get([actor.handle.busy.remote() for actor in self._actors])

    def _route(self, requests: Sequence[ScoringRequest]) -> dict[PooledActor, list[int]]:
        """Each actor's indices into the requests. A row goes to the actor that has its cache, else to the one
        with the fewest rows.
        """
        assigned = {request.key: self._actor_of_row.get(request.key) for request in requests}
        if any(actor.is_up for actor in self._actors):  # rows leave an actor that is down
            assigned = {
                key: actor if actor is not None and actor.is_up else None
                for key, actor in assigned.items()
            }
        num_rows = dict.fromkeys(self._actors, 0)
        for actor in assigned.values():
            if actor is not None:
                num_rows[actor] += 1
        indices_of: dict[PooledActor, list[int]] = {}
        for index, request in enumerate(requests):
            actor = assigned[request.key]
            if actor is None:
                actor = min(num_rows, key=lambda actor: (not actor.is_up, num_rows[actor]))
                assigned[request.key] = actor
                num_rows[actor] += 1
            indices_of.setdefault(actor, []).append(index)
        self._actor_of_row = {key: actor for key, actor in assigned.items() if actor is not None}
        for actor in self._actors:
            if actor not in indices_of:
                # All its rows left, and one that comes back may have been with another actor.
                actor.sent_tokens = {}
        return indices_of

    def _collect(
        self, actor: PooledActor, ref: Any, indices: list[int], rewards: Tensor, begun: float
    ) -> None:
        """Wait for one actor's answer, and write it into the rows `indices` of rewards [G, K]."""
        wait = begun + actor.timeout.wait_seconds - self._clock()
        try:
            answer = self._ray.get(ref, timeout=max(wait, 0.0))
        except Exception as error:  # noqa: BLE001, dead, late, restarting or failed: all leave rows unguided
            self.failed_calls += 1
            actor.mark_down(error)
            return
        actor.timeout.record_answer(self._clock() - begun)
        rewards[indices] = widen_rewards(torch.from_numpy(answer.copy()), rewards.shape[1])

    def _count_missing(self, actor: PooledActor, num_rows: int) -> None:
        if actor.is_up:
            message = f"reward actor {actor.number} has no room for a row"
            self.failure_log.add("no room", num_rows, message)
        else:
            is_late = isinstance(actor.error, TimeoutError)
            message = f"reward actor {actor.number} is down: its rows have no rewards until it answers again"
            reason: Reason = "late actor" if is_late else "lost actor"
            self.failure_log.add(reason, num_rows, message, actor.error)


@dataclass(eq=False)
class PooledActor:
    """The server's side of one actor: what was sent to it, and whether it answers."""

    handle: Any
    """Ray's handle of a PersRMActor."""

    number: int
    """Its index in the pool, for messages."""

    timeout: ActorTimeout
    """How long to wait for its answers, and when to call it again after a failure."""

    sent_tokens: dict[int, list[int]] = field(default_factory=dict)
    """Row key -> the tokens that the actor has for it."""

    ready_ref: Any = None
    """While the actor is down: the ref of a `ready` call, which is answered when the actor is up again."""

    error: Exception | None = None
    """Why it is down."""

    @property
    def is_up(self) -> bool:
        """Whether no call has failed since the actor last answered `ready`."""
        return self.ready_ref is None

    def send_step(self, requests: Sequence[ScoringRequest]) -> Any:
        """Call the actor's `step` with updates of what was sent before; returns the ref of its rewards."""
        before, sent = self.sent_tokens, {}
        # If the call raises an error, it is not known which tokens the actor has.
        self.sent_tokens = {}
        updates = []
        for request in requests:
            tokens = sent[request.key] = before.get(request.key, [])
            num_kept = common_prefix_length(tokens, request.tokens, request.num_unchanged)
            added = tuple(request.tokens[num_kept:])
            tokens[num_kept:] = added
            updates.append(
                RowUpdate(
                    key=request.key,
                    num_kept=num_kept,
                    added=added,
                    w=request.w,
                    candidates=tuple(request.candidates),
                    must_finish=request.must_finish,
                )
            )
        ref = self.handle.step.remote(updates)
        self.sent_tokens = sent
        return ref

    def check_up(self, ray: Any) -> bool:
        """Whether the actor takes updates. One that was down does once it has answered `ready` and its pause
        is over; this call finds out, without waiting.
        """
        if not self.is_up and not self.timeout.paused and ray.wait([self.ready_ref], timeout=0)[0]:
            try:
                ray.get(self.ready_ref)
                self.ready_ref = self.error = None
            except ray.exceptions.RayError:
                self.ready_ref = (
                    self.handle.ready.remote()
                )  # dead, and Ray has not restarted it yet
        return self.is_up

    def mark_down(self, error: Exception) -> None:
        """It failed or was late, and may have lost its rows: send them whole when it has answered again."""
        self.error = error
        self.sent_tokens = {}
        self.timeout.record_failure()
        self.ready_ref = self.handle.ready.remote()


def _join_ray(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False, "namespace": "pad_vllm"}
    if address:
        ray.init(address=address, **quiet)
    else:  # without "local" Ray joins RAY_ADDRESS, or whatever cluster runs on this machine
        ray.init(address="local", include_dashboard=False, **quiet)


_CLUSTER_NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}
"""Ray's name of a resource in a request -> its name in a cluster."""


def _ray_options(resources: Mapping[str, float]) -> dict[str, Any]:
    """Options of an actor: num_cpus and num_gpus by Ray's own names, all others as custom resources."""
    own = {name: resources[name] for name in _CLUSTER_NAMES if name in resources}
    custom = {name: amount for name, amount in resources.items() if name not in own}
    return {"num_cpus": 1, **own, **({"resources": custom} if custom else {})}


def _not_started(pad: PADConfig, cluster: Mapping[str, float]) -> str:
    """The message of the TimeoutError at start-up; cluster: what the whole cluster has."""
    requested = {"num_cpus": 1, **pad.ray_resources}
    names = [_CLUSTER_NAMES.get(name, name) for name in requested]
    available = {name: cluster.get(name, 0.0) for name in names}
    return (
        f"the {pad.ray_actors} reward actors have not all started in {_START_S:g} s: each asks for "
        f"{_amounts(requested)}, and the cluster has {_amounts(available)}. Ask for less (ray_actors and "
        "ray_resources in additional_config['pad']), or add hosts; `ray status` says what is in use. "
        "Where there is enough, the reward model loads too slowly: put its files on the hosts' own disks."
    )


def _amounts(resources: Mapping[str, float]) -> str:
    return listed(f"{name} {amount:g}" for name, amount in resources.items())
