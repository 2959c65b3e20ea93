"""Which folders a client may have adapters loaded from, by vLLM's `/v1/load_lora_adapter`.

In: the path that a client named. Out: a folder, or a refusal that tells nothing of what lies outside of the
allowed ones, and no path of this machine's. A client's adapter is read into memory whole, so its size is
limited before it is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pad_vllm.adapter.adapter_folder import ADAPTER_FILES, PREFIXES_FOLDER
from pad_vllm.adapter.manifest import CONFIG_FILE
from pad_vllm.config import PADConfig
from pad_vllm.wording import short_repr

MAX_ADAPTER_BYTES = 1 << 30
"""Of all files of an adapter that is loaded at run time: heads of an 8B base take 4 MiB a dimension, gated
ones 6.
"""


class AdapterRoots:
    """The folders below which adapters may be loaded: `adapter_root`, or else those that hold the adapters
    which the server started with. A whole disk is no such folder.
    """

    def __init__(self, pad: PADConfig) -> None:
        """Nothing is read."""
        served = [path for path in (pad.adapter, *pad.adapters.values()) if path]
        resolved = [Path(path).expanduser().resolve() for path in served]
        named = [Path(pad.adapter_root).expanduser().resolve()] if pad.adapter_root else []
        parents = [path.parent for path in resolved if path.parent != path.parent.parent]
        self._roots = tuple(dict.fromkeys(named or parents))
        self._served = (*served, *map(str, resolved))

    def allowed_folder(self, path: str) -> Path | None:
        """Where a client's path leads, if that is below an allowed folder. `~` is a name like any other.

        None also where it leads nowhere: a loop of links, a NUL, a name too long.
        """
        try:
            folder = Path(path).resolve()
        except (OSError, ValueError, RuntimeError):
            return None
        return folder if any(root in folder.parents for root in self._roots) else None

    def has_adapter(self, path: str) -> bool:
        """Whether there is an adapter in a folder that may be loaded; others are not looked at."""
        folder = self.allowed_folder(path)
        try:
            return folder is not None and (folder / CONFIG_FILE).is_file()
        except OSError:
            return False

    def require_own_files(self, folder: Path) -> None:
        """Raise ValueError where a file of an adapter is a link that leads out of the allowed folders: it
        would be read, and told of in an error message.
        """
        for file in _files(folder):
            if self.allowed_folder(str(file)) is None:
                raise ValueError(
                    f"{file.relative_to(folder)} is a link to elsewhere; accepted: files below this server's "
                    "setting adapter_root. Copy the adapter with its files"
                )

    @contextmanager
    def adapter_folder(self, path: str) -> Iterator[Path]:
        """The folder that a client named. A ValueError or OSError that is raised inside becomes a ValueError
        which tells no path but the client's own.

        Raises ValueError: it is not below an allowed folder.
        """
        folder = self.allowed_folder(path)
        if folder is None:
            raise ValueError(
                f"lora_path is {short_repr(path)}, and this server loads adapters from elsewhere; accepted: "
                "a folder below its setting adapter_root, which is by default the folder that holds the "
                "adapter it was started with"
            )
        try:
            yield folder
        except (ValueError, OSError) as error:
            raise ValueError(self._without_paths(str(error), folder, path)) from error

    def _without_paths(self, message: str, folder: Path, path: str) -> str:
        message = message.replace(str(folder), path)
        for served in sorted(self._served, key=len, reverse=True):
            message = message.replace(served, "the served adapter")
        for root in self._roots:
            message = message.replace(f"{root}{os.sep}", f"adapter_root{os.sep}")
        return message


def require_small(folder: Path) -> None:
    """Raise ValueError where an adapter's files have more than MAX_ADAPTER_BYTES."""
    size = sum(file.stat().st_size for file in _files(folder) if file.is_file())
    if size > MAX_ADAPTER_BYTES:
        raise ValueError(
            f"the adapter has {size} bytes; accepted: {MAX_ADAPTER_BYTES} at most. Name it in "
            "additional_config['pad']['adapters'] and start the server again"
        )


def _files(folder: Path) -> list[Path]:
    """The files that an adapter may have."""
    prefixes = folder.glob(f"{PREFIXES_FOLDER}/*/*")
    return [*(folder / name for name in ADAPTER_FILES), *prefixes]
