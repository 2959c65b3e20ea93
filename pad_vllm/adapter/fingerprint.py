"""Which weights a checkpoint holds, told from its safetensors files without reading them whole.

In: a folder of *.safetensors. Out: `sha256:...` over every tensor's name, dtype, shape and a
sample of its bytes; the same however the tensors are spread over files, whatever their order and
metadata. It reads headers with struct and json, and imports neither torch nor safetensors.
"""

import hashlib
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import Any

from pad_vllm.wording import listed, show

SAMPLE = 4096  # bytes read of one tensor at most: 3 MB for a 70B model of 723 tensors
CHUNKS = 8  # evenly spaced, first and last bytes among them
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_LONGEST_HEADER = 100_000_000  # the format's own limit
_WAY_OUT = "Download or copy the file again."


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int  # of its bytes, from the start of the file
    size: int


def fingerprint(checkpoint: Path) -> str:
    """`sha256:<64 hex digits>` of the weights in `checkpoint`.

    It notices a renamed tensor, another dtype or shape, and values that changed where it samples;
    a change between the samples of one tensor goes unseen. Raises ValueError where no safetensors
    are found, or a file is cut short or malformed.
    """
    tensors: dict[str, _Tensor] = {}
    for file in _files(Path(checkpoint)):
        for tensor in _header(file):
            if tensor.name in tensors:
                raise ValueError(
                    f"{checkpoint} holds tensor {tensor.name!r} twice, in "
                    f"{tensors[tensor.name].file.name} and {file.name}; accepted is one "
                    f"checkpoint a folder. Move the other files out, or add the {_INDEX} that "
                    "says which files belong together."
                )
            tensors[tensor.name] = tensor
    if not tensors:
        raise ValueError(f"{checkpoint}: its safetensors files hold no tensors. {_WAY_OUT}")
    return _digest(tensors)


def local_checkpoint(
    name_or_path: str, revision: str | None = None, cache_dir: str | None = None
) -> Path | None:
    """The folder of a checkpoint that is on this machine: a folder as it is, a hub name as its
    snapshot in the local cache. None for anything else; nothing is downloaded.
    """
    folder = Path(name_or_path).expanduser()
    if name_or_path and folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    try:
        # Not snapshot_download(local_files_only=True): it refuses a snapshot that lacks any file
        # of the repository, and vLLM fetches only those it needs.
        config = try_to_load_from_cache(
            name_or_path, "config.json", cache_dir=cache_dir, revision=revision
        )
    except ValueError:  # not a name the hub could have
        return None
    return Path(config).parent if isinstance(config, str) else None


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


def _header(file: Path) -> Iterator[_Tensor]:
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
    needed = max((tensor.start + tensor.size for tensor in tensors), default=0)
    if needed > total:
        raise ValueError(
            f"{file} is cut short: {total} bytes, its header needs {needed}. {_WAY_OUT}"
        )
    yield from tensors


def _entry(file: Path, data: int, name: str, entry: dict[str, Any]) -> _Tensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(extent) for extent in entry["shape"])
    if not 0 <= begin <= end or not isinstance(entry["dtype"], str) or min(shape, default=0) < 0:
        raise ValueError(show(entry))
    if (begin == end) != (math.prod(shape) == 0):
        raise ValueError(show(entry))
    return _Tensor(name, entry["dtype"], shape, file, data + begin, end - begin)


def _digest(tensors: dict[str, _Tensor]) -> str:
    digest = hashlib.sha256(b"pad fingerprint 1\n")
    streams: dict[Path, RawIOBase] = {}
    try:
        for name in sorted(tensors):
            tensor = tensors[name]
            head = [name, tensor.dtype, list(tensor.shape), tensor.size]
            # One JSON line a tensor: different lists of tensors never give the same text.
            digest.update(json.dumps(head).encode() + b"\n")
            if tensor.file not in streams:
                streams[tensor.file] = tensor.file.open("rb", buffering=0)
            for start, size in _chunks(tensor.size):
                streams[tensor.file].seek(tensor.start + start)
                digest.update(streams[tensor.file].read(size) or b"")
    finally:
        for stream in streams.values():
            stream.close()
    return f"sha256:{digest.hexdigest()}"


def _chunks(size: int) -> list[tuple[int, int]]:
    """(start, size) of the bytes to hash: a small tensor's all, else CHUNKS pieces of it."""
    if size <= SAMPLE:
        return [(0, size)]
    piece = SAMPLE // CHUNKS
    return [(index * (size - piece) // (CHUNKS - 1), piece) for index in range(CHUNKS)]
