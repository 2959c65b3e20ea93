"""A list of tokens that notes how much of it is read."""

from __future__ import annotations


class Watched(list):
    """`read`: how many of its items were taken out, one by one or in slices."""

    read = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        self.read += len(found) if isinstance(at, slice) else 1
        return found

    def __iter__(self):
        self.read += len(self)
        return super().__iter__()
