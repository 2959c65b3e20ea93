"""Fingerprints a checkpoint's weights without reading its safetensors files completely.

In: a folder of *.safetensors. Out: `sha256:...` over every tensor's name, dtype, shape and a sample of its
bytes. It does not depend on how the tensors are spread over files, their order or metadata. This module
imports neither torch nor safetensors.
"""

import hashlib
import json
from io import RawIOBase
from pathlib import Path

from pad_vllm.adapter.backbone.safetensors_headers import StoredTensor, stored_tensors

SAMPLED_BYTES = 4096  # most bytes read of one tensor: 3 MB for a 70B model with its 723 tensors
SAMPLED_CHUNKS = 8  # evenly spaced chunks of them, which include the first and last bytes


def fingerprint(checkpoint: Path) -> str:
    """`sha256:<64 hex digits>` of the weights in folder `checkpoint`.

    It changes with a tensor's name, dtype, shape and sampled bytes, and does not change with bytes between
    the samples. Raises ValueError where there are no safetensors files, or a file is cut short or malformed.
    """
    return fingerprint_of_tensors(stored_tensors(checkpoint))


def local_checkpoint(
    name_or_path: str,
    revision: str | None = None,
    cache_dir: str | None = None,
    file: str = "config.json",
) -> Path | None:
    """The folder of a checkpoint, or of a LoRA, that is on this machine. Downloads nothing.

    Args:
        name_or_path: Folder, or a model's name on the hub.
        revision: Branch, tag or commit on the hub; None: the default branch.
        cache_dir: Hub cache to look in; None: the default one.
        file: A file that the hub's repository has.

    Returns:
        The folder itself, or the snapshot of a hub name in the local cache; None if there is neither.
    """
    folder = Path(name_or_path).expanduser()
    if name_or_path and folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    try:
        # Not snapshot_download(local_files_only=True): it refuses a snapshot that lacks any file of the
        # repository, and vLLM fetches only the files that it needs.
        config = try_to_load_from_cache(name_or_path, file, cache_dir=cache_dir, revision=revision)
    except ValueError:  # not a valid name of a hub model
        return None
    return Path(config).parent if isinstance(config, str) else None


def fingerprint_of_tensors(stored: dict[str, StoredTensor]) -> str:
    """`fingerprint` of a checkpoint from `stored_tensors` of it."""
    digest = hashlib.sha256(b"pad fingerprint 1\n")
    streams: dict[Path, RawIOBase] = {}
    try:
        for name in sorted(stored):
            tensor = stored[name]
            header = [name, tensor.dtype, list(tensor.shape), tensor.num_bytes]
            # One JSON line per tensor: different lists of tensors never give the same text.
            digest.update(json.dumps(header).encode() + b"\n")
            if tensor.file not in streams:
                streams[tensor.file] = tensor.file.open("rb", buffering=0)
            for start, size in _sampled_ranges(tensor.num_bytes):
                streams[tensor.file].seek(tensor.offset + start)
                digest.update(streams[tensor.file].read(size) or b"")
    finally:
        for stream in streams.values():
            stream.close()
    return f"sha256:{digest.hexdigest()}"


def _sampled_ranges(size: int) -> list[tuple[int, int]]:
    """(start, size) of the bytes to hash: all of a small tensor, otherwise SAMPLED_CHUNKS chunks."""
    if size <= SAMPLED_BYTES:
        return [(0, size)]
    chunk = SAMPLED_BYTES // SAMPLED_CHUNKS
    return [
        (index * (size - chunk) // (SAMPLED_CHUNKS - 1), chunk) for index in range(SAMPLED_CHUNKS)
    ]
