"""A tiny base with an adapter that sentences taught, and an engine that says how it was asked, in words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jury
import kept
import numpy as np
import pytest
import tiny

from pad_vllm.adapter.adapter_folder import load_adapter, save_adapter
from pad_vllm.steering import dimension_judges
from pad_vllm.steering.guided_answers import DrawnAnswer

SENTENCES = {"warm": "be warm", "dry": "be dry", "calm": "be calm"}


@dataclass
class Asked:
    base: Path
    adapter: Path
    folder: Path
    batches: list = field(default_factory=list)

    def run(self, monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], *argv: str) -> dict:
        """What a script wrote."""
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
    strength = {name: 4 + round(4 * condition.weights.get(name, 0)) for name in SENTENCES}
    words = [name for name, times in strength.items() for _ in range(times)]
    words += [name for name, sentence in SENTENCES.items() if sentence in condition.instruction] * 4
    return DrawnAnswer(" ".join(words), (20, 31, 45), 3.0)


def made(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes) -> Asked:
    """changes: of `tiny.write_adapter`."""
    base = tiny.checkpoint("llama", folder / "base")
    plain = {"fork_layer": 4, "std": 0.3, "constants": True, **changes}
    adapter = tiny.write_adapter(base, folder / "plain", dimensions=tuple(SENTENCES), **plain)
    rows = [{"dimension": name, "sentences": [said]} for name, said in SENTENCES.items()]
    loaded = load_adapter(adapter)
    config = dataclasses.replace(loaded.config, training={"taught": rows})
    save_adapter(dataclasses.replace(loaded, config=config), folder / "taught", "x")
    (folder / "p.txt").write_text("".join(f"prompt {i}\n" for i in range(6)))
    (folder / "j.txt").write_text("".join(f"other {i}\n" for i in range(8)))
    found = Asked(base, folder / "taught", folder)
    monkeypatch.setattr(kept, "draw_answers", found.draw)
    for module in (dimension_judges, jury):
        monkeypatch.setattr(module, "embed", embed)
    return found


def embed(texts):
    return np.array([[text.split().count(name) for name in SENTENCES] for text in texts], float)
