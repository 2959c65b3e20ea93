"""PAD's own series beside vLLM's in /metrics.

In: what a front end sees of its requests, and the counts that a worker reports with the outcomes of answers
(patches/outcome_rpc.py). A worker reports each count once, to the front end that asks, so several front ends
together have all of them. The series are in this process's default registry, which is vLLM's.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pad_vllm.guidance_outcome import GuidanceCounts

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter

_SECONDS_BUCKETS = (
    *(0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.02),
    *(0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)


class PADMetrics:
    """PAD's series in one registry of prometheus_client."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Histogram

        def counter(name: str, description: str, *labels: str) -> Counter:
            return Counter(f"pad:{name}", description, labels, registry=registry)

        self._guided_requests = counter("requests_guided", "Requests that asked for guidance.")
        self._refused_requests = counter(
            "requests_refused", "Requests whose pad_ arguments were refused."
        )
        self._user_requests = counter("requests_of_users", "Requests that named a user.")
        self._unknown_user_requests = counter(
            "requests_of_unknown_users", "Of these, requests whose user the server does not know."
        )
        self._choices = counter("choices_posted", "Choices that profiles have learned from.")
        self._read_texts = counter(
            "profile_texts_read", "Choices between given texts, and sentences, that were read."
        )
        self._unread_texts = counter(
            "profile_texts_unread", "Others that nothing was learned from, by reason.", "reason"
        )
        self._read_conversations = counter(
            "conversations_read", "Conversations that profiles have learned from."
        )
        self._unread_conversations = counter(
            "conversations_unread", "Others that nothing was learned from, by reason.", "reason"
        )
        self._guided_tokens = counter("tokens_guided", "Tokens of ended answers that were guided.")
        self._unguided_tokens = counter(
            "tokens_unguided",
            "Tokens of ended guided answers that the base chose without a reward.",
        )
        self._unknown_tokens = counter(
            "tokens_unknown",
            "Tokens of ended guided answers for which the worker reported no outcome.",
        )
        self._guided_rows = counter(
            "rows_guided", "Rows of logits that were guided, one a token and one a draft."
        )
        self._changed_rows = counter(
            "rows_changed", "Of these, rows whose likeliest token guidance changed."
        )
        self._failures = counter(
            "rows_declined", "Rows that went unguided, and other failures, by reason.", "reason"
        )
        self._reward_seconds = Histogram(
            "pad:reward_seconds",
            "Seconds a step that the host spent on rewards.",
            buckets=_SECONDS_BUCKETS,
            registry=registry,
        )

    def count_guided_request(self) -> None:
        """Count a request that asks for guidance."""
        self._guided_requests.inc()

    def count_refused_request(self) -> None:
        """Count a request whose `pad_` arguments are refused."""
        self._refused_requests.inc()

    def count_user_request(self, *, is_known: bool) -> None:
        """Count a request that names a user."""
        self._user_requests.inc()
        if not is_known:
            self._unknown_user_requests.inc()

    def count_choice(self) -> None:
        """Count a choice that is on disk."""
        self._choices.inc()

    def count_read_text(self) -> None:
        """Count a choice between given texts, or a sentence, that the reader has read."""
        self._read_texts.inc()

    def count_unread_text(self, reason: str) -> None:
        """Count one that the reader has not read, or not in time."""
        self._unread_texts.labels(reason).inc()

    def count_read_conversation(self) -> None:
        """Count a conversation whose weights are on disk."""
        self._read_conversations.inc()

    def count_unread_conversation(self, reason: str) -> None:
        """Count one that nothing was learned from."""
        self._unread_conversations.labels(reason).inc()

    def count_answer_tokens(self, tokens: int, unguided: int | None) -> None:
        """Count all tokens of a guided request's answers; unguided: how many of them are, None if unknown."""
        if unguided is None:
            self._unknown_tokens.inc(tokens)
            return
        unguided = min(unguided, tokens)  # rows whose sample vLLM discards are counted too
        self._guided_tokens.inc(tokens - unguided)
        self._unguided_tokens.inc(unguided)

    def add_worker_counts(self, counts: GuidanceCounts) -> None:
        """Add what a worker counted since its last report."""
        self._guided_rows.inc(counts["rows"])
        self._changed_rows.inc(counts["changed"])
        for reason, count in counts["failures"].items():
            self._failures.labels(reason).inc(count)
        for seconds in counts["seconds"]:
            self._reward_seconds.observe(seconds)


@cache
def pad_metrics() -> PADMetrics:
    """The series of this process."""
    from prometheus_client import REGISTRY

    return PADMetrics(REGISTRY)
