"""Answers of one or more engines, kept in a file: the same command again reads them instead of drawing.

In: AnswerBatches with the same prompts and decodings. Out: their answers, one batch's conditions after the
other's. A file holds the answers to one question, by all that decides them; another question replaces it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pad_vllm.adapter.manifest import read_config
from pad_vllm.steering.guided_answers import AnswerBatch, DrawnAnswer, draw_answers

_VERSION = 3


def read_or_draw(
    batches: Sequence[AnswerBatch], file: Path | None, print_line: Callable[[str], None]
) -> list[list[list[DrawnAnswer]]]:
    """[decoding][condition][prompt] of all batches; an engine for each batch draws what the file has not.

    Args:
        batches: With the same prompts and decodings.
        file: Where answers are kept; None keeps none.
        print_line: Told how many answers are drawn, if any are.
    """
    question = _question(batches)
    if file is not None and file.is_file():
        stored = json.loads(file.read_text())
        if stored["question"] == question:
            return [
                [[DrawnAnswer.from_json(fields) for fields in row] for row in rows]
                for rows in stored["answers"]
            ]
    longest = max(decoding.tokens for batch in batches for decoding in batch.decodings)
    number = sum(batch.num_answers for batch in batches)
    print_line(f"drawing {number:,} answers of at most {longest} tokens")
    by_batch = [draw_answers(batch) for batch in batches]
    answers = [
        [row for rows in of_decoding for row in rows] for of_decoding in zip(*by_batch, strict=True)
    ]
    if file is not None:
        plain = [[[answer.to_json() for answer in row] for row in rows] for rows in answers]
        file.write_text(json.dumps({"question": question, "answers": plain}))
    return answers


def _question(batches: Sequence[AnswerBatch]) -> str:
    """All that decides the answers, as JSON text."""
    configs = [read_config(batch.adapter).to_json() for batch in batches if batch.adapter]
    return json.dumps([_VERSION, [batch.as_json() for batch in batches], configs])
