"""Which weights a checkpoint holds, told from its safetensors files without reading them whole.

In: a folder of *.safetensors. Out: `sha256:...` over every tensor's name, dtype, shape and a
sample of its bytes; the same however the tensors are spread over files, whatever their order and
metadata. It imports neither torch nor safetensors.
"""

import hashlib
import json
from io import RawIOBase
from pathlib import Path

from pad_vllm.adapter.backbone.safetensors_headers import StoredTensor, stored_tensors

SAMPLED_BYTES = 4096  # bytes read of one tensor at most: 3 MB for a 70B model of 723 tensors
SAMPLED_CHUNKS = 8  # evenly spaced, first and last bytes among them


def fingerprint(checkpoint: Path) -> str:
    """`sha256:<64 hex digits>` of the weights in `checkpoint`.

    It notices a renamed tensor, another dtype or shape, and values that changed where it samples;
    a change between the samples of one tensor goes unseen. Raises ValueError where no safetensors
    are found, or a file is cut short or malformed.
    """
    return fingerprint_of_tensors(stored_tensors(checkpoint))


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


def fingerprint_of_tensors(stored: dict[str, StoredTensor]) -> str:
    """The fingerprint of a checkpoint whose headers are read."""
    made = hashlib.sha256(b"pad fingerprint 1\n")
    streams: dict[Path, RawIOBase] = {}
    try:
        for name in sorted(stored):
            tensor = stored[name]
            head = [name, tensor.dtype, list(tensor.shape), tensor.num_bytes]
            # One JSON line a tensor: different lists of tensors never give the same text.
            made.update(json.dumps(head).encode() + b"\n")
            if tensor.file not in streams:
                streams[tensor.file] = tensor.file.open("rb", buffering=0)
            for start, size in _chunks(tensor.num_bytes):
                streams[tensor.file].seek(tensor.offset + start)
                made.update(streams[tensor.file].read(size) or b"")
    finally:
        for stream in streams.values():
            stream.close()
    return f"sha256:{made.hexdigest()}"


def _chunks(size: int) -> list[tuple[int, int]]:
    """(start, size) of the bytes to hash: a small tensor's all, else CHUNKS pieces of it."""
    if size <= SAMPLED_BYTES:
        return [(0, size)]
    piece = SAMPLED_BYTES // SAMPLED_CHUNKS
    return [
        (index * (size - piece) // (SAMPLED_CHUNKS - 1), piece) for index in range(SAMPLED_CHUNKS)
    ]
