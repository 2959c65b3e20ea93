"""What requests to one vLLM instance may ask for; it changes while adapters are loaded and removed.

In: the limits of the served adapters. Out: RequestLimits, by which the processor parses each request.
Imports no vLLM.
"""

from __future__ import annotations

from dataclasses import replace

from pad_vllm.request_limits import RequestLimits


class AcceptedLimits:
    """The current limits of one vLLM instance."""

    def __init__(self, limits: RequestLimits) -> None:
        self.limits = limits

    def add(self, worker_key: str, limits: RequestLimits) -> None:
        """Accept requests that name this adapter."""
        others = {**self.limits.other_adapters, worker_key: limits}
        self.limits = replace(self.limits, other_adapters=others)

    def remove(self, worker_key: str) -> None:
        """Accept no more requests that name this adapter."""
        others = {
            key: kept for key, kept in self.limits.other_adapters.items() if key != worker_key
        }
        self.limits = replace(self.limits, other_adapters=others)
