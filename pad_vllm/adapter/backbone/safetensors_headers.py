"""The tensors in a checkpoint's safetensors files: their headers, none of their bytes.

In: a folder of *.safetensors. Out: name -> type, shape, and where its bytes lie. Reads headers with struct
and json, and imports neither torch nor safetensors.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_vllm.wording import listed, short_repr

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LONGEST_HEADER = 100_000_000  # the format's own limit
_WAY_OUT = "Download or copy the file again."


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int  # of its bytes, from the start of the file
    num_bytes: int


def stored_tensors(checkpoint: Path) -> dict[str, StoredTensor]:
    """Every tensor that vLLM would load, by name. Raises ValueError where no safetensors are found, or a
    file is cut short or malformed.
    """
    found: dict[str, StoredTensor] = {}
    for file in _files(Path(checkpoint)):
        for tensor in _header(file):
            if tensor.name in found:
                raise ValueError(
                    f"{checkpoint} holds tensor {tensor.name!r} twice, in "
                    f"{found[tensor.name].file.name} and {file.name}; accepted is one "
                    f"checkpoint a folder. Move the other files out, or add the {_INDEX} that "
                    "says which files belong together."
                )
            found[tensor.name] = tensor
    if not found:
        raise ValueError(f"{checkpoint}: its safetensors files hold no tensors. {_WAY_OUT}")
    return found


def _files(folder: Path) -> list[Path]:
    """The files that vLLM would load: those of the index, else the one file, else every file."""
    index = folder / _INDEX
    if index.is_file():
        files = [folder / name for name in _indexed(index)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{index} lists files that are not there: {listed(missing)}. Finish the download."
            )
        return files
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        names = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
        raise ValueError(
            f"{folder} has no *.safetensors files (it has: {listed(names)}), and only safetensors "
            "checkpoints are accepted. Point to the checkpoint's folder, or convert it with "
            "Transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)."
        )
    return files


def _indexed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{index} is not a safetensors index with a 'weight_map'. {_WAY_OUT}"
        ) from None


def _header(file: Path) -> Iterator[StoredTensor]:
    total = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else total
        if length > min(total - 8, _LONGEST_HEADER):
            raise ValueError(
                f"{file} is no safetensors file, or is cut short: {total} bytes, header says "
                f"{length}. {_WAY_OUT}"
            )
        raw = stream.read(length)
    try:
        entries = json.loads(raw.decode("utf-8"))
        entries.pop("__metadata__", None)
        tensors = [_entry(file, 8 + length, name, entry) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{file} has an invalid safetensors header. {_WAY_OUT}") from None
    needed = max((tensor.offset + tensor.num_bytes for tensor in tensors), default=0)
    if needed > total:
        raise ValueError(
            f"{file} is cut short: {total} bytes, its header needs {needed}. {_WAY_OUT}"
        )
    yield from tensors


def _entry(file: Path, data: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(extent) for extent in entry["shape"])
    if not 0 <= begin <= end or not isinstance(entry["dtype"], str) or min(shape, default=0) < 0:
        raise ValueError(short_repr(entry))
    if (begin == end) != (math.prod(shape) == 0):
        raise ValueError(short_repr(entry))
    return StoredTensor(name, entry["dtype"], shape, file, data + begin, end - begin)
