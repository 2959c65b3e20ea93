"""The response field `pad` of a guided answer, and the counts that a worker reports beside it.

The worker counts it (serving/worker/outcome_table.py), and the front end fetches it
(vllm_api/patches/outcome_rpc.py). This module knows neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
OUTCOME_KEY = "_pad_answer"
"""In a guided request's `extra_args`: the key by which the front end asks the worker for the answer's
outcome.
"""

ExplainedStep = tuple[int, list[int], list[float]]
"""One step of an answer with `pad_explain`: how many tokens the answer had, its candidates' token ids, best
first, and the reward of each in logits, less their mean.
"""


class TokenExplanation(TypedDict):
    """One token of an answer with `pad_explain`."""

    token: str
    """The text that the token adds."""

    reward: float | None
    """R_w in logits less its mean over the base's candidates, before strength and guards. None where it is
    not known, or where the token was chosen without a reward.
    """

    base: str | None
    """Text of the base's most likely token at this position; None where that is not known."""

    changed: bool
    """Whether the answer has another token than the base's most likely one."""


class Outcome(TypedDict):
    """The field `pad` of one answer, or of all answers to one request."""

    guided_tokens: int | None
    """How many of the answer's tokens were chosen with a reward; None where the count is lost. From the
    worker it is logits rows, of which not all become tokens, and so is `unguided_tokens`. Approximate with
    speculative decoding where reasoning stays unguided: rows of rejected drafts of both count.
    """

    unguided_tokens: int | None
    """How many of the answer's tokens the base chose without a reward, those among them that no logits
    processor of PAD ever saw; reasoning that the operator leaves unguided is not counted. None where the
    count is lost. An upper bound with speculative decoding: a rejected draft's row counts too.
    """

    stopped: bool
    """Whether PAD ended the answer because a token had no reward (`on_failure` "stop")."""

    reasoning_rows: NotRequired[int]
    """Only from the worker: rows of reasoning that the operator leaves unguided."""

    steps: NotRequired[list[ExplainedStep]]
    """Only from the worker: the front end makes `explained` of it."""

    explained: NotRequired[list[list[TokenExplanation]]]
    """With `pad_explain`: each answer token by token."""

    user: NotRequired[str]
    """With `pad_user`: that user."""

    profile_version: NotRequired[int | None]
    """With `pad_user`: the version of the profile whose weights guided the answer. None where the request
    brought its own weights, or the user is not known.
    """


class GuidanceCounts(TypedDict):
    """What guidance did in a worker since its last report."""

    rows: int
    """Guided logits rows: one for each token, and with speculative decoding one for each draft, rejected
    or not.
    """

    changed: int
    """Those of them whose most likely token guidance changed."""

    seconds: list[float]
    """Seconds that the host spent on rewards, one number a step."""

    failures: dict[str, int]
    """Reason -> rows left unguided, or failures that left none."""


WorkerReport = tuple[list[Outcome | None], GuidanceCounts | None]
"""What a worker returns for a list of outcome keys: the outcomes in the order of the keys, None for an
answer that this worker never had, and the counts; None where this worker counts nothing.
"""


def unknown_outcome() -> Outcome:
    """The outcome of an answer whose counts are lost."""
    return {"guided_tokens": None, "unguided_tokens": None, "stopped": False}


def unasked_outcome() -> Outcome:
    """The outcome of an answer that nothing was to guide."""
    return {"guided_tokens": 0, "unguided_tokens": 0, "stopped": False}


def total_outcome(outcomes: Sequence[Outcome]) -> Outcome | None:
    """One outcome for several answers: counts summed, explanations in order. None for no answers."""
    if not outcomes:
        return None
    total: Outcome = {
        "guided_tokens": _sum([outcome["guided_tokens"] for outcome in outcomes]),
        "unguided_tokens": _sum([outcome["unguided_tokens"] for outcome in outcomes]),
        "stopped": any(outcome["stopped"] for outcome in outcomes),
    }
    if reasoning_rows := sum(outcome.get("reasoning_rows", 0) for outcome in outcomes):
        total["reasoning_rows"] = reasoning_rows
    for outcome in outcomes[:1]:  # one request has one user
        if "user" in outcome:
            total["user"], total["profile_version"] = outcome["user"], outcome["profile_version"]
    if not any("explained" in outcome for outcome in outcomes):
        return total
    explained = [answer for outcome in outcomes for answer in outcome.get("explained", [[]])]
    return {**total, "explained": explained}


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def in_tokens(outcome: Outcome, num_tokens: int) -> Outcome:
    """A worker's outcome, which counts rows, as one of `num_tokens` tokens.

    There may be more rows than tokens: drafts that were rejected, a last step whose token was dropped. Where
    there are fewer, the others were sampled without PAD.
    """
    guided, unguided = outcome["guided_tokens"], outcome["unguided_tokens"]
    counted: Outcome = {**outcome}
    reasoning = counted.pop("reasoning_rows", 0)
    if guided is not None and unguided is not None:
        unseen = max(num_tokens - guided - unguided - reasoning, 0)
        unguided = min(unguided + unseen, num_tokens)
        counted["unguided_tokens"] = unguided
        counted["guided_tokens"] = min(guided, num_tokens - unguided)
    return counted


def with_explanations(outcome: Outcome, ids: Sequence[int], tokenizer: Any) -> Outcome:
    """Replace an outcome's `steps` by `explained`. An outcome without steps is returned as it is.

    Args:
        outcome: from the worker.
        ids: token ids of the answer.
        tokenizer: Transformers' or vLLM's, or None.
    """
    if "steps" not in outcome:
        return outcome
    explained: Outcome = {
        "guided_tokens": outcome["guided_tokens"],
        "unguided_tokens": outcome["unguided_tokens"],
        "stopped": outcome["stopped"],
        "explained": [token_explanations(outcome["steps"], ids, tokenizer)],
    }
    return explained


def token_explanations(
    steps: Sequence[ExplainedStep], ids: Sequence[int], tokenizer: Any
) -> list[TokenExplanation]:
    """Explain each token of an answer.

    Args:
        steps: of the answer, in any number; of two for one position the later one counts.
        ids: token ids of the answer.
        tokenizer: Transformers' or vLLM's; None (vLLM's skip_tokenizer_init) leaves texts empty.

    Returns:
        One explanation for each of `ids`.
    """
    by_position = {position: (candidates, rewards) for position, candidates, rewards in steps}
    explanations: list[TokenExplanation] = []
    for position, (text, token) in enumerate(zip(token_texts(tokenizer, ids), ids, strict=True)):
        candidates, rewards = by_position.get(position, ([], []))
        reward = rewards[candidates.index(token)] if token in candidates else math.nan
        best = candidates[0] if candidates else None
        previous = ids[:position][-1:]
        explanation: TokenExplanation = {
            "token": text,
            "reward": reward if math.isfinite(reward) else None,
            "base": None if best is None else _text_after(tokenizer, previous, best),
            "changed": best is not None and best != token,
        }
        explanations.append(explanation)
    return explanations


def _text_after(tokenizer: Any, previous: Sequence[int], token: int) -> str:
    """A token's text after the previous one. At the start of a text it may lose the space that it has
    there.
    """
    if tokenizer is None:
        return ""
    text: str = tokenizer.decode([*previous, token])
    return text[len(tokenizer.decode(previous)) :] if previous else text


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds. A character of several tokens belongs to the last of them."""
    if tokenizer is None:
        return [""] * len(ids)
    texts: list[str] = []
    # Each decoding begins one token early, with a whole character: `begin`. `read` is the first new token.
    begin = read = 0
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[begin:end])
        if text.endswith(_UNFINISHED):
            texts.append("")
            continue
        texts.append(text[len(tokenizer.decode(ids[begin:read])) :])
        begin, read = read, end
    return texts
