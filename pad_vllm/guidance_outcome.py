"""What a client is told of a guided answer: the field `pad` of responses and of `RequestOutput`.

The worker counts it (serving/worker/outcome_table.py), the front end asks for it
(vllm_api/patches/outcome_rpc.py). Knows neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
OUTCOME_KEY = "_pad_answer"
"""In a guided request's `extra_args`: the front end's mark, by which it asks the worker for the outcome."""

ExplainedStep = tuple[int, list[int], list[float]]
"""With `pad_explain`, of an answer: its tokens so far, the candidates, best first, what each would earn."""


class TokenExplanation(TypedDict):
    """One token of an answer with `pad_explain`."""

    token: str
    reward: float | None
    """R_w in logits less its mean over the base's candidates, before strength and guards; None where it is
    not known, or the token was chosen without.
    """

    base: str | None
    """What the base held most likely there; None where that is not known."""

    changed: bool
    """Whether that is another token."""


class Outcome(TypedDict):
    """Of one answer, or of all answers to one request."""

    unguided_tokens: int | None
    """How many of its tokens the base chose without a reward, but for reasoning that is to be left alone.
    None where that is not known any more. An upper bound with speculative decoding: the row of a draft that
    was rejected counts too.
    """

    stopped: bool
    """Whether PAD ended it for that reason (`on_failure` "stop")."""

    steps: NotRequired[list[ExplainedStep]]
    """From the worker alone; the front end makes `explained` of it."""

    explained: NotRequired[list[list[TokenExplanation]]]
    """With `pad_explain`: each answer token by token."""


class GuidanceCounts(TypedDict):
    """What guidance did since the worker was last asked."""

    rows: int
    """Guided: one a token, and with speculative decoding one a draft, rejected or not."""

    changed: int
    """Of them, those whose likeliest token guidance changed."""

    seconds: list[float]
    """That the host spent on rewards, a step each."""

    declined: dict[str, int]
    """Reason -> rows."""


WorkerReport = tuple[list[Outcome | None], GuidanceCounts | None]
"""What a worker answers: outcomes in the order they were asked for, None of answers that it never had, and
the figures.
"""


def unknown_outcome() -> Outcome:
    """Of an answer that nobody counted."""
    return {"unguided_tokens": None, "stopped": False}


def total_outcome(outcomes: Sequence[Outcome]) -> Outcome | None:
    """Of all of them together; None of none."""
    counts = [outcome["unguided_tokens"] for outcome in outcomes]
    known = [count for count in counts if count is not None]
    if not counts:
        return None
    whole: Outcome = {
        "unguided_tokens": sum(known) if len(known) == len(counts) else None,
        "stopped": any(outcome["stopped"] for outcome in outcomes),
    }
    if not any("explained" in outcome for outcome in outcomes):
        return whole
    explained = [answer for outcome in outcomes for answer in outcome.get("explained", [[]])]
    return {**whole, "explained": explained}


def with_explanations(outcome: Outcome, ids: Sequence[int], tokenizer: Any) -> Outcome:
    """`steps` as `explained`; ids: the answer's tokens. An outcome without steps stays as it is."""
    if "steps" not in outcome:
        return outcome
    whole: Outcome = {
        "unguided_tokens": outcome["unguided_tokens"],
        "stopped": outcome["stopped"],
        "explained": [token_explanations(outcome["steps"], ids, tokenizer)],
    }
    return whole


def token_explanations(
    steps: Sequence[ExplainedStep], ids: Sequence[int], tokenizer: Any
) -> list[TokenExplanation]:
    """Of each of the answer's tokens. A place that was decided twice counts as the last time.

    tokenizer: Transformers' or vLLM's; None, and there is no text.
    """
    known = {place: (candidates, rewards) for place, candidates, rewards in steps}
    found: list[TokenExplanation] = []
    for place, (text, token) in enumerate(zip(token_texts(tokenizer, ids), ids, strict=True)):
        candidates, rewards = known.get(place, ([], []))
        reward = rewards[candidates.index(token)] if token in candidates else math.nan
        best = candidates[0] if candidates else None
        one: TokenExplanation = {
            "token": text,
            "reward": reward if math.isfinite(reward) else None,
            "base": None if best is None else _behind(tokenizer, ids[:place][-1:], best),
            "changed": best is not None and best != token,
        }
        found.append(one)
    return found


def _behind(tokenizer: Any, before: Sequence[int], token: int) -> str:
    """A token's text: the first of a text may lose the space that it has behind another."""
    if tokenizer is None:
        return ""
    text: str = tokenizer.decode([*before, token])
    return text[len(tokenizer.decode(before)) :] if before else text


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds. A character of several tokens is the last one's."""
    if tokenizer is None:  # vLLM's skip_tokenizer_init
        return [""] * len(ids)
    texts: list[str] = []
    begin = read = 0  # what is decoded begins a token early, and with a whole character
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[begin:end])
        if text.endswith(_UNFINISHED):
            texts.append("")
            continue
        texts.append(text[len(tokenizer.decode(ids[begin:read])) :])
        begin, read = read, end
    return texts
