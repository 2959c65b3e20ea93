"""The scored responses of a run: read, checked, reported in the log and put into the store.

What the methods `pairs` and `scores` have in common. In: `Settings.data`. Out: `PreparedData`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pad_vllm.training.data.data_report import DataReport
from pad_vllm.training.data.prepare_data import PreparedData, TrainedBase, prepare_groups
from pad_vllm.training.objective.training_store import TrainingStore
from pad_vllm.training.run_context import RunContext


def read_scored_data(context: RunContext) -> PreparedData:
    """The run's groups, with a report in the log; what the data decides goes into the context's settings.

    Raises ValueError if a requested dimension has no two different scores.
    """
    base = TrainedBase(context.backbone.fingerprint, context.context_tokens)
    prepared = prepare_groups(context.settings, context.tokenizer, base)
    _require_scored_dimensions(context.settings.dimensions, prepared.report)
    context.settings = prepared.settings
    for row in prepared.report.table_rows():
        context.log_table_row(row)
    for line in prepared.report.malformed_lines():
        context.log.write_line(f"malformed: {line}")
    for line in [*prepared.report.remarks(), *prepared.remarks]:
        context.log.write_line(line)
    return prepared


def sources_read(prepared: PreparedData) -> dict[str, Any]:
    """Source -> file -> digest of its content; and the hub's commits."""
    reports = prepared.report.source_reports
    revisions = {name: report.revision for name, report in reports.items() if report.revision}
    return {
        "data": {name: report.digests for name, report in reports.items()},
        "revisions": revisions,
    }


def fill_store_with(prepared: PreparedData, store: TrainingStore, context: RunContext) -> None:
    """Compute the activations of all groups.

    Args:
        prepared: The run's groups.
        store: The store of the run's model.
        context: The run.
    """
    evaluated = [*prepared.validation, *prepared.held_out]
    with context.timed("cache"):
        context.fill_store(store, prepared.train, with_targets=True)
        context.fill_store(store, evaluated, with_targets=False)


def _require_scored_dimensions(dimensions: Sequence[str], report: DataReport) -> None:
    """Raise ValueError for a dimension of which no two responses of a prompt have different scores."""
    pairs: Counter[str] = Counter()
    for counts in report.grouping.values():
        pairs.update(counts.pairs)
    for name in dimensions:
        if not pairs[name]:
            raise ValueError(
                f"dimension {name}: no two responses of the data have different scores of it, so "
                "nothing can be learned. Correct --dimensions, or give data that scores it"
            )
