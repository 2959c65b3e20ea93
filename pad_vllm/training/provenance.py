"""What a rerun needs to know of this one: package versions, the commit, and how much memory was needed."""

from __future__ import annotations

import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from pad_vllm.version import __version__

_ROOT = Path(__file__).parents[2]  # of a checkout; of an installed package, site-packages


def peak_memory_gib() -> float:
    """Peak resident memory of this process, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that training runs on."""
    version_of = {"pad_vllm": __version__, "python": sys.version.split()[0]}
    for package in ("torch", "transformers", "peft", "accelerate", "datasets"):
        version_of[package] = version(package)
    return version_of


def git_revision() -> str | None:
    """The commit of the checkout that this file lies in; None for an installed package, also where its
    environment lies in a checkout of something else.
    """
    if not (_ROOT / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
