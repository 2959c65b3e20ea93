"""One small random model of each family through one engine, in one subprocess: what twins are held to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from cases import mixed_batch
from harness import engines, pad

# Longer and shorter than the window, neighbours of different length.
LENGTHS = (3, 40, 17, 70)


def answered(
    root: Path,
    forks: dict[str, int],
    settings: Callable[[Path], dict[str, Any] | None],
    **llm: Any,
) -> dict[str, Any]:
    """family -> (checkpoint, adapter, requests, result); forks: family -> fork layer; settings: of
    additional_config["pad"] for a checkpoint; llm: further arguments of the engines.
    """
    made = {}
    for family, fork in forks.items():
        base = tiny.checkpoint(family, root / family)
        adapter = tiny.write_adapter(
            base, root / f"{family}_adapter", fork_layer=fork, std=0.15, beta=1.0
        )
        prompts = [[3 + (7 * i + length) % 256 for i in range(length)] for length in LENGTHS]
        made[family] = (base, adapter, mixed_batch(adapter, prompts, 24))
    jobs = [
        {"llm": pad(base, adapter, settings(base), **llm), "requests": requests, "record": True}
        for base, adapter, requests in made.values()
    ]
    results = engines(jobs)
    return {
        family: (*one, result) for (family, one), result in zip(made.items(), results, strict=True)
    }
