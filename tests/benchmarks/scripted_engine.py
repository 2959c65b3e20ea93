"""A tiny base with an adapter that instructions trained, and an engine whose answers follow conditions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import tiny

from benchmarks.common import answer_cache, independent_judges
from pad_vllm.adapter.adapter_folder import load_adapter, save_adapter
from pad_vllm.steering import dimension_judges
from pad_vllm.steering.guided_answers import DrawnAnswer

INSTRUCTIONS = {"warm": "be warm", "dry": "be dry", "calm": "be calm"}


@dataclass
class ScriptedEngine:
    """Stands in for vLLM where a script draws answers; `batches`: what was drawn."""

    base: Path
    adapter: Path
    folder: Path
    batches: list = field(default_factory=list)

    def run(self, monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *argv: str) -> dict:
        """Run a script's main -> the result that it wrote."""
        files = ["--steering", self.folder / "p.txt", "--judge-prompts", self.folder / "j.txt"]
        own = ["--base", self.base, "--adapter", self.adapter, "--out", self.folder / "out.json"]
        monkeypatch.setattr("sys.argv", ["script.py", *map(str, [*own, *files, *argv])])
        main()
        return json.loads((self.folder / "out.json").read_text())

    def draw(self, batch):
        """Answers that have a dimension's word as often as its weight says."""
        self.batches.append(batch)
        return [
            [[_answer(c, p, d) for p in batch.prompts] for c in batch.conditions]
            for d in batch.decodings
        ]


def _answer(condition, prompt, decoding):
    counts = {name: 4 + round(4 * condition.weights.get(name, 0)) for name in INSTRUCTIONS}
    words = [name for name, times in counts.items() for _ in range(times)]
    words += [name for name, text in INSTRUCTIONS.items() if text in condition.instruction] * 4
    return DrawnAnswer(" ".join(words), (20, 31, 45), 3.0)


def make_scripted_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, **changes
) -> ScriptedEngine:
    """changes: of `tiny.write_adapter`."""
    base = tiny.checkpoint("llama", folder / "base")
    settings = {"fork_layer": 4, "std": 0.3, "constants": True, **changes}
    plain = tiny.write_adapter(base, folder / "plain", dimensions=tuple(INSTRUCTIONS), **settings)
    rows = [{"dimension": name, "sentences": [text]} for name, text in INSTRUCTIONS.items()]
    loaded = load_adapter(plain)
    config = dataclasses.replace(loaded.config, training={"taught": rows})
    save_adapter(dataclasses.replace(loaded, config=config), folder / "taught", "x")
    (folder / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(6)))
    (folder / "j.txt").write_text("".join(f"other {i}\n" for i in range(8)))
    engine = ScriptedEngine(base, folder / "taught", folder)
    monkeypatch.setattr(answer_cache, "draw_answers", engine.draw)
    for module in (dimension_judges, independent_judges):
        monkeypatch.setattr(module, "embed", count_words)
    return engine


def count_words(texts):
    """Stands in for sentence embeddings: how often a text has each dimension's word, [N, 3]."""
    return np.array([[text.split().count(name) for name in INSTRUCTIONS] for text in texts], float)
