"""Ranks of tensor parallelism in threads of one process: what each does, and sums over all of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch


class ThreadedRanks:
    """A stand-in for vllm_api/parallel_ranks.py; `run` calls a function once a rank."""

    def __init__(self, size):
        self.size = size
        self.sums = 0
        self._shares = [None] * size
        self._barrier = threading.Barrier(size, timeout=20)
        self._rank = threading.local()

    def tp_rank_and_size(self):
        return self._rank.number, self.size

    def texts_of_all_ranks(self, text):
        return self._gathered(text)

    def sum_over_ranks(self, share):
        """In another order on each rank, as an all-reduce may."""
        rank = self._rank.number
        shares = self._gathered(share.clone())
        order = [(rank + step) % self.size for step in range(self.size)]
        total = sum((shares[other] for other in order[1:]), shares[order[0]])
        self.sums += rank == 0
        return total

    def _gathered(self, share):
        self._shares[self._rank.number] = share
        self._barrier.wait()
        shares = [*self._shares]
        self._barrier.wait()
        return shares

    def run(self, call):
        """call(rank) on every rank -> the results."""

        def one(rank):
            self._rank.number = rank
            try:
                return call(rank)
            except threading.BrokenBarrierError:
                raise
            except Exception:
                self._barrier.abort()  # the others would wait for it
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(one, range(self.size)))


def same_bits(tensors):
    return all(torch.equal(tensors[0], other) for other in tensors[1:])
