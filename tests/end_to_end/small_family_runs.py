"""One small random model of each family through one engine each, in one subprocess, for the PyTorch twin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
from engine_processes import engines, pad
from mixed_requests import mixed_batch

# Longer and shorter than the window, neighbours of different length.
LENGTHS = (3, 40, 17, 70)
GATED = ("llama", "gemma3")  # families whose heads have gates


def run_families(
    root: Path,
    forks: dict[str, int],
    settings: Callable[[Path], dict[str, Any] | None],
    **llm: Any,
) -> dict[str, Any]:
    """Guided and unguided answers of each family.

    Args:
        root: Folder of the checkpoints and adapters.
        forks: Family -> fork layer.
        settings: Checkpoint -> further settings in additional_config["pad"].
        llm: Further arguments of the engines.

    Returns:
        Family -> (checkpoint, adapter, requests, result).
    """
    made = {}
    for family, fork in forks.items():
        base = tiny.checkpoint(family, root / family)
        adapter = tiny.write_adapter(
            base,
            root / f"{family}_adapter",
            fork_layer=fork,
            std=0.15,
            beta=1.0,
            gates=family in GATED,
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
