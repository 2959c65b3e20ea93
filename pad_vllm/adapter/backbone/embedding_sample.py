"""Samples a checkpoint's token embedding: values that a quantised copy has in common with its original.

In: the tensors in a checkpoint's files. Out: SAMPLE_SIZE values, evenly spaced over the rows of the
vocabulary; None if no file holds an unpacked token embedding. Methods that quantise linear layers keep the
token embedding except for its dtype, even if they scale the weights between layers (AWQ, SmoothQuant).
Methods that rotate the hidden states (QuaRot, SpinQuant) change it, and heads trained on the original do not
fit their hidden states. This module imports neither torch nor safetensors.
"""

import math
import struct
from collections.abc import Mapping, Sequence

from pad_vllm.adapter.backbone.safetensors_headers import StoredTensor

SAMPLE_SIZE = 32
_RELATIVE_TOLERANCE = 2.0**-8
"""Largest change by rounding to bfloat16."""

_ABSOLUTE_TOLERANCE = 2.0**-24
"""Largest change by rounding to float16 near its smallest numbers."""

_FORMATS = {"F32": ("<f", 0), "F16": ("<e", 0), "BF16": ("<f", 2)}
"""safetensors dtype -> (struct format, zero bytes to put before the stored bytes)."""


def sample_embedding(
    stored: Mapping[str, StoredTensor], vocab_size: int, hidden_size: int
) -> tuple[float, ...] | None:
    """Values of the token embedding that identify its checkpoint.

    Args:
        stored: All tensors of the checkpoint, by name.
        vocab_size: Vocabulary size V of the model; the stored matrix may have more rows.
        hidden_size: Hidden size H of the model.

    Returns:
        SAMPLE_SIZE finite values; None if there is no matrix of this shape in float32, float16 or bfloat16,
        or if a sampled value is not finite.
    """
    embeddings = [
        tensor
        for tensor in stored.values()
        if tensor.dtype in _FORMATS
        and len(tensor.shape) == 2
        and tensor.shape[0] >= vocab_size
        and tensor.shape[1] == hidden_size
    ]
    if not embeddings:
        return None
    # An untied lm_head comes last: a quantisation method may pack it.
    embedding = min(embeddings, key=lambda tensor: ("lm_head" in tensor.name, tensor.name))
    values = _read_values(embedding, vocab_size)
    return values if all(map(math.isfinite, values)) else None


def sampled_places(rows: int, width: int) -> list[int]:
    """Where the sampled values are in a matrix of this shape, read row by row."""
    last = rows * width - 1
    return [number * last // (SAMPLE_SIZE - 1) for number in range(SAMPLE_SIZE)]


def samples_match(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether two samples are of the same embedding, stored in any dtype of 16 bits or more."""
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(
        abs(a - b) <= _RELATIVE_TOLERANCE * abs(a) + _ABSOLUTE_TOLERANCE for a, b in pairs
    )


def _read_values(tensor: StoredTensor, rows: int) -> tuple[float, ...]:
    struct_format, padding = _FORMATS[tensor.dtype]
    itemsize = struct.calcsize(struct_format) - padding
    values = []
    with tensor.file.open("rb", buffering=0) as stream:
        for place in sampled_places(rows, tensor.shape[1]):
            stream.seek(tensor.offset + place * itemsize)
            raw = bytes(padding) + (stream.read(itemsize) or b"")
            values.append(float(struct.unpack(struct_format, raw)[0]))
    return tuple(values)
