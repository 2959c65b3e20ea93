"""Adds scores to records: a JSONL of `pad-vllm sample` in, the same records with scores per dimension out.

Line i of the output is line i of the source, appended as it is done: a second call continues where the
first stopped. A response that a scorer has no score for stays without, and is counted. Knows nothing of
how a score is made (evaluation/scorer_specs.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

from pad_vllm.evaluation.scorer_specs import BatchScorer, parse_scorer
from pad_vllm.text.conversation import prompt_key
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.preference_record import PreferenceRecord
from pad_vllm.training.progress_bar import progress_bar


@dataclass
class ScoringCounts:
    """What one call of `score_file` did."""

    scored: int = 0
    """Records scored."""

    already_done: int = 0
    """Records that the output held before."""

    without_score: Counter[str] = field(default_factory=Counter)
    """Dimension -> responses that its scorer had no score for."""


def score_file(
    source: Path, out: Path, specs: Sequence[str], *, batch_size: int = 64, concurrency: int = 8
) -> ScoringCounts:
    """Score every record of `source` that `out` does not hold yet, and append it to `out`.

    Args:
        source: a JSONL of PreferenceRecords.
        out: a JSONL; made if it is missing.
        specs: one scorer for each dimension (`scorer_specs.parse_scorer`).
        batch_size: records between two writes.
        concurrency: requests that a judge gets at once.

    Returns:
        How many records were scored and were there before, and responses without a score.

    Raises:
        ValueError: an unknown spec; a dimension that has scores already; an `out` that was made from
            another source or with other scorers.
    """
    scorers = _parse_scorers(specs, concurrency)
    if not source.is_file():
        raise ValueError(f"{source} is not there. Accepted: the JSONL that `pad-vllm sample` wrote")
    if out.exists() and out.samefile(source):
        raise ValueError(f"--out {out} is the source itself. Give another file")
    jsonl.repair_last_line(out)
    counts = ScoringCounts(already_done=_count_done(source, out, scorers))
    total = jsonl.count_lines(source)
    records = islice(jsonl.read_records(source), counts.already_done, None)
    with (
        jsonl.line_appender(out) as append,
        progress_bar("scoring", total, done=counts.already_done) as advance,
    ):
        while batch := list(islice(records, batch_size)):
            for record in _with_scores(batch, scorers, counts.without_score):
                append(jsonl.record_to_line(record))
            counts.scored += len(batch)
            advance(len(batch))
    return counts


def _parse_scorers(specs: Sequence[str], concurrency: int) -> dict[str, BatchScorer]:
    """Dimension -> its scorer."""
    scorers: dict[str, BatchScorer] = {}
    for spec in specs:
        dimension, scorer = parse_scorer(spec, concurrency=concurrency)
        if dimension in scorers:
            raise ValueError(f"dimension {dimension} has two scorers. Accepted: one a dimension")
        scorers[dimension] = scorer
    if not scorers:
        raise ValueError("no scorer is named. Say for instance: positive helpful=judge:URL#MODEL")
    return scorers


def _count_done(source: Path, out: Path, scorers: Mapping[str, BatchScorer]) -> int:
    """How many records `out` holds. Raises ValueError for one of another source or of other scorers."""
    names = {dimension: scorer.name for dimension, scorer in scorers.items()}
    pairs = zip_longest(jsonl.read_records(source), jsonl.read_records(out))
    for number, (unscored, scored) in enumerate(pairs):
        if scored is None:
            return number
        if unscored is None or not _is_same(unscored, scored):
            raise ValueError(
                f"record {number + 1} of {out} is not that of {source}: it was made from another "
                "file. Remove it, or give another --out"
            )
        if scored.scorers != {**unscored.scorers, **names}:
            raise ValueError(
                f"{out} was made with the scorers {_listed(scored.scorers)}, now asked for are "
                f"{_listed({**unscored.scorers, **names})}. Ask for the same, remove it, or give "
                "another --out"
            )
    return jsonl.count_lines(out)


def _is_same(unscored: PreferenceRecord, scored: PreferenceRecord) -> bool:
    """Whether two records have the same prompt and responses."""
    texts = [[response.text for response in record.responses] for record in (unscored, scored)]
    return unscored.prompt == scored.prompt and texts[0] == texts[1]


def _listed(scorers: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={spec}" for name, spec in sorted(scorers.items())) or "(none)"


def _with_scores(
    records: list[PreferenceRecord], scorers: Mapping[str, BatchScorer], without_score: Counter[str]
) -> Iterator[PreferenceRecord]:
    """The records with scores. All their responses go to a scorer in one call.

    without_score: counts, by dimension, the responses that get no score.
    """
    for record in records:
        _refuse_scored(record, scorers)
    pairs = [(record, response) for record in records for response in record.responses]
    prompts = [record.prompt for record, _ in pairs]
    texts = [response.text for _, response in pairs]
    scores: list[dict[str, float]] = [dict(response.scores) for _, response in pairs]
    for dimension, scorer in scorers.items():
        for scores_of_response, value in zip(scores, scorer(prompts, texts), strict=True):
            if value is None or not math.isfinite(value):
                without_score[dimension] += 1
            else:
                scores_of_response[dimension] = value
    names = {dimension: scorer.name for dimension, scorer in scorers.items()}
    scored = (r.model_copy(update={"scores": s}) for (_, r), s in zip(pairs, scores, strict=True))
    for record in records:
        responses = list(islice(scored, len(record.responses)))
        all_scorers = {**record.scorers, **names}
        yield record.model_copy(update={"responses": responses, "scorers": all_scorers})


def _refuse_scored(record: PreferenceRecord, scorers: Mapping[str, BatchScorer]) -> None:
    """Existing scores may be human judgements, so none is overwritten."""
    existing = set(record.scorers).union(*(response.scores for response in record.responses))
    if already_scored := sorted(existing & set(scorers)):
        raise ValueError(
            f"the source has scores of {already_scored[0]} already "
            f"(prompt {prompt_key(record.prompt)[:60]!r}). "
            f"Give the new ones another name, such as {already_scored[0]}2={scorers[already_scored[0]].name}"
        )
