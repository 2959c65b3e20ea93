"""PAD's own series beside vLLM's in /metrics.

In: what a front end sees of its requests, and what the worker tells beside the outcomes of answers
(answers.py): so figures come from its process to this one, each once, to whichever front end asks, and
several together have them all. The series are in the process's default registry, which is vLLM's.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from pad_vllm.guidance_outcome import GuidanceCounts

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter

_BUCKETS = (
    0.0001,
    0.0003,
    0.001,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
)  # seconds


class PADMetrics:
    """The series, in a registry of prometheus_client's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Histogram

        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(f"pad:{name}", said, labels, registry=registry)

        self._guided = counter("requests_guided", "Requests that asked for guidance.")
        self._refused = counter("requests_refused", "Requests whose pad_ arguments were refused.")
        self._tokens = counter("tokens_guided", "Tokens of ended answers that were guided.")
        self._unguided = counter(
            "tokens_unguided",
            "Tokens of ended guided answers that the base chose without a reward.",
        )
        self._unknown = counter(
            "tokens_unknown",
            "Tokens of answers of which the worker did not say how they came about.",
        )
        self._rows = counter(
            "rows_guided", "Rows of logits that were guided, one a token and one a draft."
        )
        self._changed = counter(
            "rows_changed", "Of these, rows whose likeliest token guidance changed."
        )
        self._declined = counter(
            "rows_declined", "Rows that went unguided, and other failures, by reason.", "reason"
        )
        self._seconds = Histogram(
            "pad:reward_seconds",
            "Seconds a step that the host spent on rewards.",
            buckets=_BUCKETS,
            registry=registry,
        )

    def count_guided_request(self) -> None:
        """A request that asks for guidance."""
        self._guided.inc()

    def count_refused_request(self) -> None:
        """A request with arguments that are not accepted."""
        self._refused.inc()

    def count_answer_tokens(self, tokens: int, unguided: int | None) -> None:
        """A guided request's answers, all of their tokens; unguided: of them, None where not known."""
        if unguided is None:
            self._unknown.inc(tokens)
            return
        without = min(unguided, tokens)  # rows whose sample vLLM discards are counted too
        self._tokens.inc(tokens - without)
        self._unguided.inc(without)

    def add_worker_counts(self, counts: GuidanceCounts) -> None:
        """What the worker tells."""
        self._rows.inc(counts["rows"])
        self._changed.inc(counts["changed"])
        for reason, count in counts["declined"].items():
            self._declined.labels(reason).inc(count)
        for seconds in counts["seconds"]:
            self._seconds.observe(seconds)


@cache
def pad_metrics() -> PADMetrics:
    """Those of this process."""
    from prometheus_client import REGISTRY

    return PADMetrics(REGISTRY)
