"""The `ray` engine: the reward model of `resident` in a pool of Ray actors, on other GPUs or hosts.

In: the asks of a step. Out: rewards, NaN for rows whose actor is down or late. A row stays with the actor
that holds its cache. The text of a step is sent when the base's forward starts (`begin`), so that both
models run at once; the candidates follow when the logits are there. Only new tokens are sent.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pad_vllm.config import PADConfig
from pad_vllm.engines.reward_model.ask import Ask, common
from pad_vllm.text.answer import Change

NAN = float("nan")
_START_S = 600.0  # longest wait for an actor to load its model at start-up


@dataclass(frozen=True)
class Update:
    """An Ask without the tokens that the actor has."""

    key: int
    keep: int
    """How many of the tokens that the actor has for the row stay."""

    added: tuple[int, ...]
    """The tokens after those."""

    w: tuple[float, ...]
    changes: tuple[Change, ...]
    must: bool

    def to(self, tokens: list[int]) -> list[int]:
        """The row's tokens, changed in place. Raises LookupError where those that should stay are gone."""
        if len(tokens) < self.keep:  # Ray restarted the actor between two calls, or a step failed
            raise LookupError(f"row {self.key}: {len(tokens)} of {self.keep} tokens are here")
        tokens[self.keep :] = self.added
        return tokens


class PersRMActor:
    """One reward model in a process of its own, started by Ray. Imports no vLLM."""

    def __init__(self, settings: dict[str, Any], dtype: str) -> None:
        from pad_vllm.adapter.folder import load_adapter
        from pad_vllm.engines.reward_model.load import make_scorer, require_reward_backbone

        pad = PADConfig(**settings)
        device = pad.device or ("cuda" if torch.cuda.is_available() else "cpu")
        adapter = load_adapter(pad.adapter)
        require_reward_backbone(pad, adapter)  # of the files that this host has
        self._scorer = make_scorer(
            pad, adapter, dtype=getattr(torch, dtype), device=torch.device(device)
        )
        self._tokens: dict[int, list[int]] = {}
        self._busy: deque[tuple[float, float]] = deque(maxlen=1000)

    def busy(self) -> list[tuple[float, float]]:
        """When the last steps began and ended, in Unix time."""
        return list(self._busy)

    def step(self, updates: list[Update]) -> Any:
        """Rewards [G, K] as numpy. Raises LookupError where tokens that it should have are gone."""
        begun = time.time()
        known, self._tokens = (
            self._tokens,
            {},
        )  # a step that fails leaves none: they come whole again
        tokens = {update.key: update.to(known.get(update.key, [])) for update in updates}
        asks = [Ask(u.key, tokens[u.key], u.w, u.changes, u.must, u.keep) for u in updates]
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
class _Actor:
    handle: Any
    number: int
    sent: dict[int, list[int]] = field(default_factory=dict)  # row -> the tokens that it has
    back: Any = None  # while it is down: the ref that is done when it is up again

    def updates(self, asks: Sequence[Ask]) -> list[Update]:
        """The asks as updates of what was sent before, noted as sent."""
        made, sent = [], {}
        for ask in asks:
            known = sent[ask.key] = self.sent.get(ask.key, [])
            keep = common(known, ask.tokens, ask.stays)
            added = tuple(ask.tokens[keep:])
            known[keep:] = added
            made.append(Update(ask.key, keep, added, ask.w, tuple(ask.changes), ask.must))
        self.sent = sent
        return made

    def up(self, ray: Any) -> bool:
        """Whether it takes updates; after a failure, once it has answered again."""
        if self.back is not None and ray.wait([self.back], timeout=0)[0]:
            try:
                ray.get(self.back)
                self.back = None
            except ray.exceptions.RayError:
                self.back = self.handle.ready.remote()  # dead, and Ray has not restarted it yet
        return self.back is None

    def down(self) -> None:
        """It failed or was late, and may have lost its rows: send them whole when it has answered again."""
        self.sent = {}
        self.back = self.handle.ready.remote()


class RayScores:
    """engines.resident.Scores over the pool."""

    def __init__(self, pad: PADConfig, dtype: torch.dtype, log: Callable[[str], None]) -> None:
        """Joins or starts Ray, makes the actors, waits until their models are loaded. Raises Ray's errors."""
        import ray

        self._ray, self._log, self._deadline = ray, log, pad.ray_deadline_s
        if not ray.is_initialized():
            _join(ray, pad.ray_address)
        settings = {**vars(pad), "ray_resources": dict(pad.ray_resources)}
        # Restarted without limit; a call is never retried, as it would come too late for its step.
        options = {"max_restarts": -1, "max_task_retries": 0, **_options(pad.ray_resources)}
        made = ray.remote(PersRMActor).options(**options)
        self._actors = [
            _Actor(made.remote(settings, str(dtype).removeprefix("torch.")), number)
            for number in range(pad.ray_actors)
        ]
        ray.get([actor.handle.ready.remote() for actor in self._actors], timeout=_START_S)
        self._home: dict[int, _Actor] = {}
        self.failures = 0
        self.unguided = 0

    def busy(self) -> list[list[tuple[float, float]]]:
        """When each actor's last steps began and ended, in Unix time."""
        return self._ray.get([actor.handle.busy.remote() for actor in self._actors])

    def begin(self, asks: Sequence[Ask]) -> None:
        """The base's forward starts: send the rows' tokens, without waiting."""
        for actor, places in self._routed(asks).items():
            if actor.up(self._ray):
                actor.handle.step.remote(actor.updates([asks[place] for place in places]))

    def __call__(self, asks: Sequence[Ask]) -> Tensor:
        """Rewards [G, K]; NaN for rows of an actor that is down, or does not answer in time."""
        result = torch.full((len(asks), max((len(a.changes) for a in asks), default=0)), NAN)
        refs = {}
        routed = self._routed(asks)
        for actor, places in routed.items():
            if actor.up(self._ray):
                updates = actor.updates([asks[place] for place in places])
                refs[actor] = actor.handle.step.remote(updates)
        end = time.monotonic() + self._deadline
        for actor, ref in refs.items():
            self._collect(actor, ref, routed[actor], result, end)
        missing = result.isnan().any(1).tolist()
        self.unguided += sum(ask.must for ask, gone in zip(asks, missing, strict=True) if gone)
        return result

    def _collect(
        self, actor: _Actor, ref: Any, places: list[int], result: Tensor, end: float
    ) -> None:
        try:
            rewards = self._ray.get(ref, timeout=max(end - time.monotonic(), 0.0))
        except Exception as error:  # noqa: BLE001, dead, late, restarting or failed: all leave rows unguided
            self.failures += 1
            actor.down()
            self._log(
                f"PAD: reward actor {actor.number}: {type(error).__name__}; its {len(places)} rows "
                f"have no rewards until it is back. Failures so far: {self.failures}"
            )
            return
        result[places, : rewards.shape[1]] = torch.from_numpy(rewards.copy())
        result[places, rewards.shape[1] :] = 0.0

    def _routed(self, asks: Sequence[Ask]) -> dict[_Actor, list[int]]:
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
        places: dict[_Actor, list[int]] = {}
        for place, ask in enumerate(asks):
            actor = home[ask.key]
            if actor is None:
                actor = home[ask.key] = min(
                    load, key=lambda actor: (actor.back is not None, load[actor])
                )
                load[actor] += 1
            places.setdefault(actor, []).append(place)
        self._home = {key: actor for key, actor in home.items() if actor is not None}
        return places


def _join(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False, "namespace": "pad_vllm"}
    if address:
        ray.init(address=address, **quiet)
    else:  # without "local" Ray joins RAY_ADDRESS, or whatever cluster runs on this machine
        ray.init(address="local", include_dashboard=False, **quiet)


def _options(resources: Any) -> dict[str, Any]:
    """Ray's own names as they are, the rest as custom resources."""
    own = {name: resources[name] for name in ("num_cpus", "num_gpus") if name in resources}
    custom = {name: amount for name, amount in resources.items() if name not in own}
    return {"num_cpus": 1, **own, **({"resources": custom} if custom else {})}
