"""The `resident` engine: a PersRM of its own in vLLM's worker, beside any base, of any tokenizer.

In: what the base was fed this step, and its candidates. Out: rewards. It keeps each request's text in step
and asks a scorer, in this process; the `ray` engine asks one in another. It knows neither keys and
values nor how a reward is made.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pad_vllm.engines.base import Request, Step
from pad_vllm.engines.persrm.ask import Ask
from pad_vllm.tokens import Reader, Reading

NAN = float("nan")


class Scores(Protocol):
    """Rewards [G, K] of the asks of one step; NaN in rows that have none."""

    def __call__(self, asks: Sequence[Ask]) -> Tensor: ...


@dataclass
class Text:
    """What an engine keeps of a request: its number, and its text as the reward model reads it."""

    key: int
    reading: Reading


class ResidentRewards:
    """One a model. See engines.base.RewardEngine."""

    def __init__(self, reader: Reader, scores: Scores, log: Callable[[str], None]) -> None:
        """scores: of one step's asks; log: where a request that lost its text is reported."""
        self._reader, self._scores, self._log = reader, scores, log
        self._keys = itertools.count()
        self._kept: Tensor | None = None
        self.lost = 0

    def keep(self, found: Tensor) -> None:
        """[R, 2] int64: token and position of the rows whose logits are computed now."""
        self._kept = found

    def rewards(self, step: Step) -> Tensor | None:
        """See engines.base.RewardEngine."""
        kept, self._kept = self._kept, None
        if kept is None or len(kept) != step.total:
            return None
        newest = kept.index_select(0, step.rows).tolist()
        asks = [
            self._ask(request, token, position, ids)
            for request, (token, position), ids in zip(
                step.requests, newest, step.ids.tolist(), strict=True
            )
        ]
        found = self._scores([ask for ask in asks if ask is not None]).to(step.ids.device)
        result = torch.full(step.ids.shape, NAN, device=step.ids.device)
        known = [place for place, ask in enumerate(asks) if ask is not None]
        result[known] = torch.nn.functional.pad(found, (0, result.shape[1] - found.shape[1]))
        return result

    def _ask(self, request: Request, token: int, position: int, ids: list[int]) -> Ask | None:
        """What to ask for a request that was just fed `token` at `position`."""
        if position > len(request.tokens):
            self.lost += 1
            self._log(f"a request's text was lost, and it stays unguided. So far: {self.lost}")
            return None
        text = self._follow(request, token, position)
        must = position == len(request.tokens) - 1  # else the base is still reading its prompt
        wanted = ids[: request.guidance.top_k] if must else []
        changes = text.reading.candidates(wanted)
        # A copy: the scorer, or the actor's mailbox, may look at it after the next token came.
        return Ask(text.key, list(text.reading.tokens), request.guidance.weights, changes, must)

    def _follow(self, request: Request, token: int, position: int) -> Text:
        """The request's text, up to and with the token it was fed."""
        if position == len(request.tokens):
            request.tokens.append(token)
            if request.state is not None:
                request.state.reading.extend([token])
        elif position == len(request.tokens) - 1 and request.tokens[position] != token:
            request.tokens[position], request.state = token, None  # what vLLM fed is the truth
        if request.state is None:
            prompt, answer = request.tokens[: request.prompt], request.tokens[request.prompt :]
            reading = self._reader.open(prompt, request.guidance.preference)
            reading.extend(answer)
            request.state = Text(next(self._keys), reading)
        return request.state
