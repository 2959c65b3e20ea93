"""The learned prefixes of the adapters that an engine serves, by adapter and by digest.

In: an adapter's prefixes as it comes and goes. Out: the prefix of a digest. The tensors stay where they are:
whoever writes one into a KV cache copies it.
"""

from __future__ import annotations

from collections.abc import Iterable

from pad_vllm.adapter.learned_prefix import LearnedPrefix


class LearnedPrefixes:
    """Nothing is served yet."""

    def __init__(self) -> None:
        self._by_adapter: dict[str, dict[str, LearnedPrefix]] = {}

    def add(self, adapter: str, prefixes: Iterable[LearnedPrefix]) -> None:
        """An adapter is served from now on.

        Args:
            adapter: a name that no other served adapter has.
            prefixes: its own.
        """
        self._by_adapter[adapter] = {prefix.digest: prefix for prefix in prefixes}

    def remove(self, adapter: str) -> None:
        """No request names this adapter any more."""
        self._by_adapter.pop(adapter, None)

    def find(self, digest: str) -> LearnedPrefix:
        """The prefix of this digest. Raises KeyError where no served adapter has it."""
        for prefixes in self._by_adapter.values():
            if digest in prefixes:
                return prefixes[digest]
        raise KeyError(f"no served adapter has the learned prefix {digest}")
