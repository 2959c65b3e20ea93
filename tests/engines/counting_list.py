"""A list that counts how many of its items are read."""

from __future__ import annotations


class CountingList(list):
    """`read`: how many items were read, one by one or in slices."""

    read = 0

    def __getitem__(self, index):
        items = super().__getitem__(index)
        self.read += len(items) if isinstance(index, slice) else 1
        return items

    def __iter__(self):
        self.read += len(self)
        return super().__iter__()
