"""What a training run gives its method: settings, tokenizer, this worker's rank, folders and the log.

Made once per worker by `TrainingRun` (training_run.py); the methods and the stages read it. Knows no model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.training.data.prompt_groups import PromptGroup
from pad_vllm.training.loop.training_log import TrainingLog
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.settings import Settings
from pad_vllm.training.work_estimate import GIB, WorkEstimate, free_bytes, require_within

Item = TypeVar("Item")


@dataclass
class RunContext:
    """One worker's view of a run."""

    settings: Settings  # the run's; reading the data fills in what is chosen by the data
    tokenizer: Any  # the base's, with the run's chat template
    backbone: Backbone  # names and sizes of the base
    context_tokens: int | None  # tokens that the base reads at most; None: unknown
    backbone_identity: str  # fingerprint of the base's weights; part of the cache files' names
    cache: Path  # folder of fork activations, shared between runs
    accelerator: Any  # accelerate.Accelerator
    folder: Path  # OUT.run, which every worker sees: all state of the unfinished run
    log: TrainingLog  # writes nothing but on worker 0
    seconds: dict[str, float] = field(default_factory=dict)  # part of the run -> its duration

    @property
    def rank(self) -> int:
        """This worker's number; 0 writes the files."""
        return int(self.accelerator.process_index)

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return int(self.accelerator.num_processes)

    def share_of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that this worker handles: every `world_size`-th."""
        return items[self.rank :: self.world_size]

    def wait_for_all_workers(self) -> None:
        """Return when every worker has called this."""
        self.accelerator.wait_for_everyone()

    def sum_over_workers(self, tensor: Tensor) -> Tensor:
        """The workers' tensors of one shape, added up, on the tensor's device."""
        total: Tensor = self.accelerator.reduce(tensor.to(self.accelerator.device))
        return total.to(tensor.device)

    def plan_cache(self, store: TrainingStore, groups: Sequence[PromptGroup]) -> None:
        """Decide whether the store keeps the activations at the fork, by --cache-gib and the disk's room.

        The same on every worker: none goes on, and writes, before all have decided. Of a store whose model
        has no weights yet nothing is logged.

        Args:
            store: With nothing of this run stored or read yet.
            groups: All groups of the run.

        Raises:
            ValueError: There is no room for what has to be kept, now or for stage 2.
        """
        if self.settings.cached:
            if not store.model.heads_only and self._is_too_much(store, groups):
                whole = store.whole_work(groups).num_bytes / GIB
                store.keep_no_forked()
                if store.device.type != "meta":
                    self.log.write_line(
                        f"fork activations: {whole:.2f} GiB are more than is kept, so the layers below the "
                        "fork run again in every step of stage 1"
                    )
            if self.settings.cache_gib is not None:
                require_within(self.settings.cache_gib, store.whole_work(groups))
            # Refuses where there is no room; it is said when the work begins.
            store.work(groups).announcement("fork activations", self.cache)
            if self.settings.recipe.head_epochs:
                store.trunk_work(groups).announcement("trunk activations", self.folder)
        self.wait_for_all_workers()

    def _is_too_much(self, store: TrainingStore, groups: Sequence[PromptGroup]) -> bool:
        """Whether the activations at the fork exceed the budget, or the disk where that is no refusal."""
        limit = self.settings.cache_gib
        if limit is not None and store.whole_work(groups).num_bytes > limit * GIB:
            return True
        may_run_again = limit is not None or self.accelerator.device.type != "cpu"
        return may_run_again and store.work(groups).num_bytes > free_bytes(self.cache)

    def fill_store(
        self, store: TrainingStore, groups: Sequence[PromptGroup], *, with_targets: bool
    ) -> None:
        """Compute what the store lacks of the groups, each worker its share; returns when all is there.

        Args:
            store: The store to fill.
            groups: All groups, the same on every worker.
            with_targets: Whether scores of alternative next tokens are needed too.
        """
        self.announce("fork activations", store.work(groups))
        store.build(
            groups, self.rank, self.world_size, self.log.progress, with_targets=with_targets
        )
        self.wait_for_all_workers()

    def announce(self, label: str, work: WorkEstimate) -> None:
        """Log what a part of the run will take; raises ValueError where the disk has no room for it."""
        line = work.announcement(label, self.cache)
        if work.tokens:
            self.log.write_line(line)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Put the duration of the `with` block into `seconds[name]` and into the log."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = time.monotonic() - start
            self.log.write_line(f"{name}: {self.seconds[name]:.0f} s")

    def log_table_row(self, cells: Sequence[object]) -> None:
        """Log one row of a table with columns of 13 characters."""
        self.log.write_line("  ".join(f"{cell!s:>13}" for cell in cells))
