"""Reads the headers of a checkpoint's safetensors files, and none of the tensors' bytes.

In: a folder of *.safetensors. Out: tensor name -> dtype, shape, file and byte range. This module reads
headers with struct and json, and imports neither torch nor safetensors.
"""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pad_vllm.wording import listed, short_repr

_INDEX_FILE = "model.safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_WAY_OUT = "Download or copy the file again."


@dataclass(frozen=True)
class StoredTensor:
    """Where a checkpoint stores one tensor."""

    name: str
    dtype: str  # as safetensors writes it, such as BF16
    shape: tuple[int, ...]
    file: Path
    offset: int  # of the tensor's first byte, from the start of the file
    num_bytes: int


def stored_tensors(checkpoint: Path) -> dict[str, StoredTensor]:
    """Every tensor that vLLM would load from folder `checkpoint`, by name.

    Raises ValueError where there are no safetensors files, or a file is cut short or malformed.
    """
    stored: dict[str, StoredTensor] = {}
    for file in _checkpoint_files(Path(checkpoint)):
        for tensor in _read_header(file):
            if tensor.name in stored:
                raise ValueError(
                    f"{checkpoint} holds tensor {tensor.name!r} twice, in "
                    f"{stored[tensor.name].file.name} and {file.name}; accepted is one "
                    f"checkpoint a folder. Move the other files out, or add the {_INDEX_FILE} that "
                    "says which files belong together."
                )
            stored[tensor.name] = tensor
    if not stored:
        raise ValueError(f"{checkpoint}: its safetensors files hold no tensors. {_WAY_OUT}")
    return stored


def tensors_of_file(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one file, by name. Raises ValueError for a file that is cut short or malformed."""
    return {tensor.name: tensor for tensor in _read_header(file)}


def _checkpoint_files(folder: Path) -> list[Path]:
    """The files that vLLM would load: those in the index, otherwise model.safetensors, otherwise all."""
    index = folder / _INDEX_FILE
    if index.is_file():
        files = [folder / name for name in _files_in_index(index)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ValueError(
                f"{index} lists files that are not there: {listed(missing)}. Finish the download."
            )
        return files
    if (folder / _SINGLE_FILE).is_file():
        return [folder / _SINGLE_FILE]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        names = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else []
        raise ValueError(
            f"{folder} has no *.safetensors files (it has: {listed(names)}), and only safetensors "
            "checkpoints are accepted. Point to the checkpoint's folder, or convert it with "
            "Transformers: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)."
        )
    return files


def _files_in_index(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{index} is not a safetensors index with a 'weight_map'. {_WAY_OUT}"
        ) from None


def _read_header(file: Path) -> Iterator[StoredTensor]:
    total = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else total
        if length > min(total - 8, _MAX_HEADER_BYTES):
            raise ValueError(
                f"{file} is no safetensors file, or is cut short: {total} bytes, header says "
                f"{length}. {_WAY_OUT}"
            )
        raw = stream.read(length)
    try:
        entries = json.loads(raw.decode("utf-8"))
        entries.pop("__metadata__", None)
        tensors = [_parse_entry(file, 8 + length, name, entry) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{file} has an invalid safetensors header. {_WAY_OUT}") from None
    end = max((tensor.offset + tensor.num_bytes for tensor in tensors), default=0)
    if end > total:
        raise ValueError(f"{file} is cut short: {total} bytes, its header needs {end}. {_WAY_OUT}")
    yield from tensors


def _parse_entry(file: Path, data_start: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(extent) for extent in entry["shape"])
    if not 0 <= begin <= end or not isinstance(entry["dtype"], str) or min(shape, default=0) < 0:
        raise ValueError(short_repr(entry))
    if (begin == end) != (math.prod(shape) == 0):
        raise ValueError(short_repr(entry))
    return StoredTensor(
        name=name,
        dtype=entry["dtype"],
        shape=shape,
        file=file,
        offset=data_start + begin,
        num_bytes=end - begin,
    )
