"""OUT.run, the folder of an unfinished run, and the settings in it that a resumed run must have.

In: Settings. Out: the folder's path, or a ValueError that says how the settings differ. Its other
files belong to the stages (checkpoints), the methods (answers, statistics) and the log.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from pad_vllm.training.settings import CHANGEABLE_SETTINGS, Settings


def run_folder(settings: Settings) -> Path:
    """OUT.run: beside the adapter, so that the adapter's folder holds nothing else."""
    out = Path(settings.out)
    return out.with_name(out.name + ".run")


def claim_run_folder(folder: Path, settings: Settings) -> None:
    """Write the run's settings into its folder; if there are some, require that they are the same.

    Raises ValueError, naming the differences, if the folder holds a run with other settings.
    """
    file = folder / "settings.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings.as_dict(), indent=1))
        return
    before = Settings.from_dict(json.loads(file.read_text()))
    if before.digest() != settings.digest():
        raise ValueError(
            f"{folder} holds a run with other settings: {_differences(before, settings)}. Give "
            "the settings it was started with, another --out, or --restart to begin anew"
        )


def _differences(before: Settings, now: Settings) -> str:
    old, new = (dataclasses.asdict(settings) for settings in (before, now))
    old, new = ({**values, **values.pop("recipe")} for values in (old, new))
    names = [name for name in old if name not in CHANGEABLE_SETTINGS and old[name] != new[name]]
    return ", ".join(f"{name} was {old[name]!r}, now {new[name]!r}" for name in names)
