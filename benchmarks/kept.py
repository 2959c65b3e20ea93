"""Answers that were drawn once: a question asked again reads them from a file.

In: a file, Batches. Out: what `steering.answers.answers` gives. A question is known by all that decides its
answers (weights of base and adapter, prompts, conditions, decodings), wherever the folders lie: scripts may
share a file. It knows no version of the code: remove it where that changes what is drawn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.steering.guided_answers import AnswerBatch, DrawnAnswer, draw_answers
from pad_vllm.training.data.conversation import Conversation

Answers = list[list[list[DrawnAnswer]]]
"""[decoding][condition][prompt]."""


class Kept:
    """One JSON line a question."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def answers(self, batch: AnswerBatch) -> Answers:
        """Drawn, and appended to the file, where it does not have them."""
        known = question(batch)
        for line in self.path.read_text("utf-8").splitlines() if self.path.is_file() else ():
            if line.startswith(f'{{"question": "{known}"') and line.endswith("}"):  # not a torn one
                return _each(
                    json.loads(line)["answers"],
                    lambda one: DrawnAnswer(one[0], tuple(one[1]), one[2]),
                )
        said = draw_answers(batch)
        plain = _each(said, lambda one: [one.text, list(one.token_ids), one.loss])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"question": known, "answers": plain}))
        return said


def question(batch: AnswerBatch) -> str:
    """sha256 over all that decides the answers."""
    adapter = None if batch.adapter is None else load_adapter(batch.adapter).digest
    asked = asdict(
        replace(batch, base=fingerprint(Path(resolve_base(batch.base))), adapter=adapter)
    )
    return hashlib.sha256(
        json.dumps(asked, sort_keys=True, default=Conversation.to_json).encode()
    ).hexdigest()


def _each(said: Any, change: Callable[[Any], Any]) -> Any:
    return [[[change(one) for one in row] for row in part] for part in said]
