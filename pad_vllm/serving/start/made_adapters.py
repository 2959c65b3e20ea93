"""Folders of the adapters that dimension jobs made: where they are, and which one is the latest.

In: the folder in which a server's jobs write. Out: the newest adapter that is complete and still fits. Each
has the dimensions of those before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pad_vllm.adapter.json_fields import AdapterError
from pad_vllm.adapter.manifest import CONFIG_FILE, AdapterConfig, read_config

MADE_FOLDER = "made"
_NAME_PREFIX = "with-"
_TRAINED, _MERGED = "trained", "merged"


class MadeAdapter(NamedTuple):
    """The adapter that a job made."""

    name: str
    """What requests give as `pad_adapter`."""

    folder: Path


def adapter_name(dimension: str) -> str:
    """The name under which the adapter is served that a job for this dimension makes."""
    return _NAME_PREFIX + dimension


class JobFolders(NamedTuple):
    """Where one job writes."""

    own: Path

    @property
    def trained(self) -> Path:
        """The adapter of the new dimension alone."""
        return self.own / _TRAINED

    @property
    def merged(self) -> Path:
        """The adapter of all dimensions."""
        return self.own / _MERGED

    @property
    def activations(self) -> Path:
        """What training stores while it runs."""
        return self.own / "activations"

    @property
    def chat_template(self) -> Path:
        """File for training, where the served adapter has a chat template of its own."""
        return self.own / "chat_template.jinja"


def new_job_folder(root: Path, dimension: str, number: str) -> JobFolders:
    """Makes the folder of a job.

    Args:
        root: of all jobs.
        dimension: that the job makes.
        number: of the job, which no other has.
    """
    folder = root / f"{number}-{dimension}"
    folder.mkdir(parents=True)
    return JobFolders(folder)


def latest_made_adapter(root: Path, served: AdapterConfig) -> MadeAdapter | None:
    """The newest adapter in a folder of jobs that has all dimensions of the served one, on the same backbone.

    None where there is none.
    """
    manifests = root.glob(f"*/{_MERGED}/{CONFIG_FILE}")
    for manifest in sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True):
        folder = manifest.parent
        try:
            config = read_config(folder)
        except AdapterError:
            continue
        fits = config.backbone.fingerprint == served.backbone.fingerprint
        if fits and set(served.dimensions) < set(config.dimensions):
            dimension = folder.parent.name.partition("-")[2]
            return MadeAdapter(adapter_name(dimension), folder)
    return None
