"""Answers that were drawn once: a batch that is asked for again is read from a file.

In: a file, AnswerBatches. Out: what `guided_answers.draw_answers` returns. A batch is known by a hash of all
that decides its answers (weights of base and adapter, prompts, conditions, decodings), wherever the folders
lie: scripts may share a file. The hash knows no version of the code: remove the file where a change of the
code changes what is drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.steering.guided_answers import AnswerBatch, DrawnAnswer, draw_answers

BatchAnswers = list[list[list[DrawnAnswer]]]
"""[decoding][condition][prompt]."""


class AnswerCache:
    """A file of one JSON line a batch."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def draw(self, batch: AnswerBatch) -> BatchAnswers:
        """The batch's answers, from the file; drawn, and appended to it, where it does not have them."""
        batch_hash = hash_batch(batch)
        for line in self.path.read_text("utf-8").splitlines() if self.path.is_file() else ():
            complete = line.endswith("}")  # a killed script may leave half a line
            if line.startswith(f'{{"question": "{batch_hash}"') and complete:
                return _map_answers(json.loads(line)["answers"], DrawnAnswer.from_json)
        answers = draw_answers(batch)
        entries = _map_answers(answers, DrawnAnswer.to_json)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"question": batch_hash, "answers": entries}))
        return answers


def hash_batch(batch: AnswerBatch) -> str:
    """sha256 over all that decides the answers."""
    adapter = None if batch.adapter is None else load_adapter(batch.adapter).digest
    base = fingerprint(Path(resolve_base(batch.base)))
    fields = replace(batch, base=base, adapter=adapter).as_json()
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _map_answers(answers: Any, function: Callable[[Any], Any]) -> Any:
    return [
        [[function(answer) for answer in by_prompt] for by_prompt in by_condition]
        for by_condition in answers
    ]
