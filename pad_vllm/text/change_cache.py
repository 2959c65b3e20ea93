"""Remembers what candidates change in a reward model's tokens, by what of the text before them decides it.

In: a context, a base's token id, its change. Out: the same change, for the next row or step with this
context. It keeps a bounded number of them, over all requests. It knows no tokenizer, and imports neither
torch nor vLLM.
"""

from __future__ import annotations

from collections.abc import Hashable

RelativeChange = tuple[int, tuple[int, ...]]
"""(number of tokens taken back from the end, added tokens)."""

MAX_CHANGES = 2**16  # some 20 MB


class ChangeCache:
    """Changes by context and token id; all are forgotten when there are too many."""

    def __init__(self) -> None:
        self._changes: dict[Hashable, dict[int, RelativeChange]] = {}
        self._num_changes = 0

    def known(self, context: Hashable) -> dict[int, RelativeChange]:
        """Token id -> its change in this context. Not to be changed, and not to be kept after `add`."""
        return self._changes.get(context, {})

    def add(self, context: Hashable, token: int, change: RelativeChange) -> None:
        """Remember one."""
        if self._num_changes == MAX_CHANGES:
            self._changes.clear()
            self._num_changes = 0
        self._changes.setdefault(context, {})[token] = change
        self._num_changes += 1
