"""Which folders a client may have adapters loaded from, by vLLM's `/v1/load_lora_adapter`.

In: the path that a client named. Out: a folder, or a refusal that tells nothing of what lies outside of the
allowed ones, and no path of this machine's. A client's adapter is read into memory whole, so its size is
limited before it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pad_vllm.config import PADConfig
from pad_vllm.wording import short_repr

MAX_ADAPTER_BYTES = 1 << 30
"""Of all files of an adapter that is loaded at run time: heads of an 8B base take 4 MiB a dimension."""


class AdapterRoots:
    """The folders below which adapters may be loaded: `adapter_root`, or else those that hold the adapters
    which the server started with.
    """

    def __init__(self, pad: PADConfig) -> None:
        """Nothing is read."""
        served = [path for path in (pad.adapter, *pad.adapters.values()) if path]
        named = [pad.adapter_root] if pad.adapter_root else [str(Path(p).parent) for p in served]
        self._roots = tuple({Path(path).expanduser().resolve(): None for path in named})

    def has(self, path: str) -> bool:
        """Whether `path` is below an allowed folder, where its links lead to."""
        folder = Path(path).expanduser().resolve()
        return any(root in folder.parents for root in self._roots)

    @contextmanager
    def adapter_folder(self, path: str) -> Iterator[Path]:
        """The folder that a client named. What is raised inside tells no path but the client's own.

        Raises ValueError: it is not below an allowed folder, or has more than MAX_ADAPTER_BYTES.
        """
        if not self.has(path):
            raise ValueError(
                f"lora_path is {short_repr(path)}, and this server loads adapters from elsewhere; accepted: "
                "a folder below its setting adapter_root, which is by default the folder that holds the "
                "adapter it was started with"
            )
        folder = Path(path).expanduser().resolve()
        try:
            _require_small(folder)
            yield folder
        except (ValueError, OSError) as error:
            raise ValueError(self._without_paths(str(error), folder, path)) from error

    def _without_paths(self, message: str, folder: Path, path: str) -> str:
        message = message.replace(str(folder), path)
        for root in self._roots:
            message = message.replace(str(root), "adapter_root")
        return message


def _require_small(folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if size > MAX_ADAPTER_BYTES:
        raise ValueError(
            f"the adapter has {size} bytes; accepted: {MAX_ADAPTER_BYTES} at most. Name it in "
            "additional_config['pad']['adapters'] and start the server again"
        )
