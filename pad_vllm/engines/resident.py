"""The `resident` engine: a PersRM of its own in vLLM's worker, beside any base, of any tokenizer.

In: what the base was fed this step, and its candidates. Out: rewards. It keeps each request's PersRM tokens
in step and asks a scorer, in this process; the `ray` engine asks one in another. It knows neither the KV
cache nor how a reward is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pad_vllm.engines.base import Request, Step, widen
from pad_vllm.engines.declined import Declined
from pad_vllm.engines.reward_model.ask import Ask
from pad_vllm.text.tokens import Reader, Reading

NAN = float("nan")


class Scores(Protocol):
    """Rewards [G, K] of the asks of one step; NaN in rows that have none."""

    def __call__(self, asks: Sequence[Ask]) -> Tensor: ...


@dataclass
class Text:
    """What the engine keeps of a request: its number, and its tokens for the reward model."""

    key: int
    reading: Reading


class ResidentRewards:
    """One a model. See engines.base.RewardEngine."""

    def __init__(
        self,
        reader: Reader,
        scores: Scores,
        declined: Declined,
        *,
        early: Callable[[Sequence[Ask]], None] | None = None,
        last_tokens: Callable[[], list[int] | None] = lambda: None,
    ) -> None:
        """scores: of one step's asks; early: takes the asks without candidates when
        the base's forward starts; last_tokens: index of each row's last token among those of that
        forward, None where it is not known.
        """
        self._reader, self.scores, self.declined = reader, scores, declined
        self._early, self._last_tokens = early, last_tokens
        self._batch: Mapping[int, Request] = {}
        self._keys = itertools.count()
        self._kept: Tensor | None = None

    def batch(self, requests: Mapping[int, Request]) -> None:
        """See engines.base.RewardEngine."""
        self._batch = requests

    def begin(self, ids: Tensor, positions: Tensor) -> None:
        """The base is fed these, [T] each: the reward model may prefill them at the same time."""
        batch, self._batch = self._batch, {}
        try:
            last = self._last_tokens() if batch else None
            if last is not None and self._early is not None and max(batch) < len(last):
                self._early(self._begun(batch, last, ids, positions))
        except Exception as error:  # noqa: BLE001, an error in a step would end the server
            self.declined.add("late start", 1, "the reward model starts late", error)

    def _begun(
        self, batch: Mapping[int, Request], last: list[int], ids: Tensor, positions: Tensor
    ) -> list[Ask]:
        rows = sorted(batch)
        places = torch.tensor([last[row] for row in rows], device=ids.device)
        fed = zip(ids[places].tolist(), positions[places].tolist(), strict=True)
        return [
            self._ask(batch[row], token, position, [])
            for row, (token, position) in zip(rows, fed, strict=True)
            if position <= len(batch[row].tokens)
        ]

    def lose(self) -> None:
        """It could not be kept: the next step's rows have none."""
        self._kept = None

    def keep(self, fed: Tensor) -> None:
        """[R, 2] int64: token and position of the rows whose logits are computed now."""
        self._kept = fed

    def rewards(self, step: Step) -> Tensor | None:
        """See engines.base.RewardEngine."""
        kept, self._kept = self._kept, None
        if kept is None or len(kept) != step.total:
            return None
        newest = kept.index_select(0, step.rows).tolist()
        known = [
            place
            for place, (request, (_, position)) in enumerate(
                zip(step.requests, newest, strict=True)
            )
            if position <= len(request.tokens)
        ]
        gone = len(newest) - len(known)
        self.declined.add("text lost", gone, "a request's text was lost: its row stays unguided")
        ids = step.ids.tolist()
        asks = [
            self._ask(step.requests[place], newest[place][0], newest[place][1], ids[place])
            for place in known
        ]
        result = torch.full(step.ids.shape, NAN, device=step.ids.device)
        if asks:
            result[known] = widen(self.scores(asks).to(step.ids.device), result.shape[1])
        return result

    def _ask(self, request: Request, token: int, position: int, ids: list[int]) -> Ask:
        """What to ask for a request that was just fed `token` at `position`."""
        text = self._follow(request, token, position)
        must = position == len(request.tokens) - 1  # else the base is still reading its prompt
        wanted = ids[: request.guidance.top_k] if must else []
        changes = text.reading.candidates(wanted)
        # A copy: the scorer or Ray may read it after the next token was appended.
        return Ask(text.key, list(text.reading.tokens), request.guidance.weights, changes, must)

    def _follow(self, request: Request, token: int, position: int) -> Text:
        """The request's tokens for the reward model, up to and with the token it was fed."""
        if position == len(request.tokens):
            request.tokens.append(token)
            if request.state is not None:
                request.state.reading.extend([token])
        elif position == len(request.tokens) - 1 and request.tokens[position] != token:
            request.tokens[position], request.state = token, None  # the fed one is in the KV cache
        if request.state is None:
            prompt, answer = request.tokens[: request.prompt], request.tokens[request.prompt :]
            reading = self._reader.open(prompt, request.guidance.preference)
            reading.extend(answer)
            request.state = Text(next(self._keys), reading)
        return request.state
