"""Some numbers of a checkpoint's token embedding: what a quantised copy has in common with its original.

In: the tensors that a checkpoint's files hold. Out: COUNT values, evenly spaced over the rows of the
vocabulary; None where there is no such matrix in a plain type. Methods that quantise linear layers leave it
as it is, but for its type, also where they scale what lies between (AWQ, SmoothQuant). A copy whose states
were rotated (QuaRot, SpinQuant) has another, and states that no head was trained on. Imports neither torch
nor safetensors.
"""

import math
import struct
from collections.abc import Mapping, Sequence

from pad_vllm.adapter.backbone.safetensors_headers import StoredTensor

SAMPLE_SIZE = 32
_SLACK = 2.0**-8, 2.0**-24
"""Relative and absolute: what rounding to bfloat16 changes, and to float16 near its smallest numbers."""

_FORMATS = {"F32": ("<f", 0), "F16": ("<e", 0), "BF16": ("<f", 2)}
"""Type -> how it is unpacked, and the zero bytes that are put before it."""


def sample_embedding(
    stored: Mapping[str, StoredTensor], vocab_size: int, hidden_size: int
) -> tuple[float, ...] | None:
    """stored: the tensors of a checkpoint, by name."""
    shaped = [
        one
        for one in stored.values()
        if one.dtype in _FORMATS
        and len(one.shape) == 2
        and one.shape[0] >= vocab_size
        and one.shape[1] == hidden_size
    ]
    if not shaped:
        return None
    # Where lm_head is a matrix of its own, it is the one that a method may pack.
    values = _values(min(shaped, key=lambda one: ("lm_head" in one.name, one.name)), vocab_size)
    return values if all(map(math.isfinite, values)) else None


def samples_match(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether they are the same, but for another type of 16 bits or more."""
    relative, absolute = _SLACK
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(
        abs(a - b) <= relative * abs(a) + absolute for a, b in pairs
    )


def _values(tensor: StoredTensor, rows: int) -> tuple[float, ...]:
    layout, padding = _FORMATS[tensor.dtype]
    size = struct.calcsize(layout) - padding
    last = rows * tensor.shape[1] - 1
    found = []
    with tensor.file.open("rb", buffering=0) as stream:
        for place in range(SAMPLE_SIZE):
            stream.seek(tensor.offset + place * last // (SAMPLE_SIZE - 1) * size)
            raw = bytes(padding) + (stream.read(size) or b"")
            found.append(float(struct.unpack(layout, raw)[0]))
    return tuple(found)
