"""Adds scores to records: the JSONL of sample.py in, the same records with scores per dimension out.

Line i of the output is line i of the source, appended as it is done: a second call continues where the
first stopped. A response that a scorer has no score for goes without, and is counted. Knows nothing of
how a score comes about (evaluation/scorer_specs.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

from pad_vllm.evaluation.scorer_specs import BatchScorer, parse_scorer
from pad_vllm.training.data import jsonl
from pad_vllm.training.data.preference_record import Message, PreferenceRecord
from pad_vllm.training.progress_bar import progress_bar


@dataclass
class ScoringCounts:
    """What one call did: records scored, records that out held already, responses without a score."""

    scored: int = 0
    already_done: int = 0
    without_score: Counter[str] = field(default_factory=Counter)


def score_file(
    source: Path, out: Path, specs: Sequence[str], *, batch: int = 64, concurrency: int = 8
) -> ScoringCounts:
    """Score every record of source that out does not hold yet, batch records at a time.

    Raises ValueError: an unknown spec, a dimension that has scores already, an out that was made from
    another source or with other scorers.
    """
    scorers = _parsed(specs, concurrency)
    if not source.is_file():
        raise ValueError(f"{source} is not there. Accepted: the JSONL that `pad-vllm sample` wrote")
    if out.exists() and out.samefile(source):
        raise ValueError(f"--out {out} is the source itself. Give another file")
    jsonl.repair_last_line(out)
    counts = ScoringCounts(already_done=_count_known(source, out, scorers))
    total = sum(1 for _ in jsonl.read_lines(source, bytes))
    records = islice(
        jsonl.read_lines(source, PreferenceRecord.model_validate_json), counts.already_done, None
    )
    with (
        jsonl.line_appender(out) as write,
        progress_bar("scoring", total, done=counts.already_done) as advance,
    ):
        while chunk := list(islice(records, batch)):
            for record in _with_scores(chunk, scorers, counts.without_score):
                write(jsonl.record_to_line(record))
            counts.scored += len(chunk)
            advance(len(chunk))
    return counts


def _parsed(specs: Sequence[str], concurrency: int) -> dict[str, BatchScorer]:
    scorers: dict[str, BatchScorer] = {}
    for spec in specs:
        dimension, scorer = parse_scorer(spec, concurrency=concurrency)
        if dimension in scorers:
            raise ValueError(f"dimension {dimension} has two scorers. Accepted: one a dimension")
        scorers[dimension] = scorer
    if not scorers:
        raise ValueError("no scorer is named. Say for instance: positive helpful=judge:URL#MODEL")
    return scorers


def _count_known(source: Path, out: Path, scorers: Mapping[str, BatchScorer]) -> int:
    """How many records out holds; ValueError where one is not the source's or by other scorers."""
    parse = PreferenceRecord.model_validate_json
    names = {dimension: scorer.name for dimension, scorer in scorers.items()}
    pairs = zip_longest(jsonl.read_lines(source, parse), jsonl.read_lines(out, parse))
    for number, (given, made) in enumerate(pairs):
        if made is None:
            return number
        if given is None or not _same(given, made):
            raise ValueError(
                f"record {number + 1} of {out} is not that of {source}: it was made from another "
                "file. Remove it, or give another --out"
            )
        if made.scorers != {**given.scorers, **names}:
            raise ValueError(
                f"{out} was made with the scorers {_listed(made.scorers)}, now asked for are "
                f"{_listed({**given.scorers, **names})}. Ask for the same, remove it, or give "
                "another --out"
            )
    return sum(1 for _ in jsonl.read_lines(out, bytes))


def _same(given: PreferenceRecord, made: PreferenceRecord) -> bool:
    texts = [[response.text for response in record.responses] for record in (given, made)]
    return given.prompt == made.prompt and texts[0] == texts[1]


def _listed(scorers: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={spec}" for name, spec in sorted(scorers.items())) or "(none)"


def _with_scores(
    records: list[PreferenceRecord], scorers: Mapping[str, BatchScorer], unknown: Counter[str]
) -> Iterator[PreferenceRecord]:
    """The records with scores; all their responses go to a scorer in one call."""
    for record in records:
        _refuse_scored(record, scorers)
    replies = [(record, response) for record in records for response in record.responses]
    prompts = [_as_text(record.prompt) for record, _ in replies]
    texts = [response.text for _, response in replies]
    scores: list[dict[str, float]] = [dict(response.scores) for _, response in replies]
    for dimension, scorer in scorers.items():
        for row, value in zip(scores, scorer(prompts, texts), strict=True):
            if value is None or not math.isfinite(value):
                unknown[dimension] += 1
            else:
                row[dimension] = value
    names = {dimension: scorer.name for dimension, scorer in scorers.items()}
    made = (r.model_copy(update={"scores": s}) for (_, r), s in zip(replies, scores, strict=True))
    for record in records:
        responses = list(islice(made, len(record.responses)))
        merged = {**record.scorers, **names}
        yield record.model_copy(update={"responses": responses, "scorers": merged})


def _refuse_scored(record: PreferenceRecord, scorers: Mapping[str, BatchScorer]) -> None:
    """Existing scores may be human judgements, so none is overwritten."""
    held = set(record.scorers).union(*(response.scores for response in record.responses))
    if twice := sorted(held & set(scorers)):
        raise ValueError(
            f"the source has scores of {twice[0]} already (prompt {record.key[:60]!r}). Give the "
            f"new ones another name, such as {twice[0]}2={scorers[twice[0]].name}"
        )


def _as_text(prompt: list[Message]) -> str:
    """A conversation as a scorer reads it: a single turn without its role, several with theirs."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{message.role}: {message.content}" for message in prompt)
