"""The model that an adapter belongs to: its shape, what tells its weights, and whether another is the same.

In: a checkpoint's folder, or its config. Out: a frozen `Backbone`, checked; what `require_backbone` says of
the one that is served. Imports no torch, and reads of the weights no more than samples.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pad_vllm.adapter.backbone.embedding_sample import SAMPLE_SIZE, sample_embedding, samples_match
from pad_vllm.adapter.backbone.safetensors_headers import stored_tensors
from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint_of_tensors
from pad_vllm.adapter.json_fields import (
    AdapterError,
    is_number,
    read_json_object,
    require_field,
    require_integer,
)
from pad_vllm.wording import listed


@dataclass(frozen=True)
class Backbone:
    """The model an adapter was trained on, or the one that is served."""

    name: str
    """Hub name or folder name; for messages, never compared."""

    architectures: tuple[str, ...]
    """As config.json lists them."""

    hidden_size: int
    """H."""

    num_layers: int
    """L, decoder layers."""

    vocab_size: int
    """V."""

    fingerprint: str | None
    """`fingerprint()` of its weights; None where there are none to read (dummy weights)."""

    landmarks: tuple[float, ...] | None = field(default=None, compare=False)
    """`landmarks()` of its weights, by which a quantised copy is known; None where nobody noted them."""

    def __post_init__(self) -> None:
        require_field(isinstance(self.name, str), "backbone.name", self.name, "text")
        names = self.architectures
        require_field(
            isinstance(names, tuple)
            and names
            and all(isinstance(name, str) and name for name in names),
            "backbone.architectures",
            names,
            "at least one architecture name",
        )
        for name in ("hidden_size", "num_layers", "vocab_size"):
            require_integer(f"backbone.{name}", getattr(self, name), 1)
        mark = self.fingerprint
        require_field(
            mark is None or (isinstance(mark, str) and re.fullmatch("sha256:[0-9a-f]{64}", mark)),
            "backbone.fingerprint",
            mark,
            "'sha256:' and 64 hex digits, or null",
        )
        known = self.landmarks
        require_field(
            known is None
            or (
                isinstance(known, tuple)
                and len(known) == SAMPLE_SIZE
                and all(map(is_number, known))
            ),
            "backbone.landmarks",
            known,
            f"{SAMPLE_SIZE} numbers, or none at all",
        )

    @classmethod
    def from_checkpoint(cls, path: Path, name: str | None = None) -> "Backbone":
        """The backbone in a checkpoint's folder: config.json, the weights' fingerprint and landmarks."""
        return cls.from_config(path, name).with_weights(Path(path))

    @classmethod
    def from_config(cls, path: Path, name: str | None = None) -> "Backbone":
        """The same from config.json alone, without a fingerprint: for weights not there."""
        path = Path(path)
        raw = read_json_object(
            path / "config.json", "Point to the folder of a Transformers checkpoint."
        )
        text = raw.get("text_config")
        merged = {**raw, **(text if isinstance(text, dict) else {})}
        names = raw.get("architectures")
        shape: list[Any] = [
            merged.get(key) for key in ("hidden_size", "num_hidden_layers", "vocab_size")
        ]
        if not isinstance(names, list) or None in shape:
            # Multimodal checkpoints leave out what equals the class's default, which only
            # Transformers knows.
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            return cls.from_hf_config(config, name=name or _name(path))
        hidden_size, num_layers, vocab_size = shape
        return cls(name or _name(path), tuple(names), hidden_size, num_layers, vocab_size, None)

    @classmethod
    def from_hf_config(
        cls, config: Any, *, name: str, fingerprint: str | None = None
    ) -> "Backbone":
        """The same from a Transformers config object, such as vLLM's `model_config.hf_config`."""
        text = config.get_text_config()
        return cls(
            name=name,
            architectures=tuple(config.architectures or ()),
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            vocab_size=text.vocab_size,
            fingerprint=fingerprint,
        )

    def with_weights(self, checkpoint: Path, *, required: bool = True) -> "Backbone":
        """The same with what tells the weights in a folder. Where they cannot be read it raises ValueError,
        or, where they are not needed, stays as it is.
        """
        try:
            stored = stored_tensors(checkpoint)
        except ValueError:
            if required:
                raise
            return self
        return dataclasses.replace(
            self,
            fingerprint=fingerprint_of_tensors(stored),
            landmarks=sample_embedding(stored, self.vocab_size, self.hidden_size),
        )


def require_same_backbone(
    trained: Backbone, served: Backbone, *, allow_mismatch: bool = False, quant_method: str = ""
) -> list[str]:
    """Raises AdapterError for a backbone that is not the adapter's own, trained; returns warnings to print.

    Architecture and shape always have to match. Other weights are refused, or warned of under
    `allow_mismatch`; a served fingerprint of None (no weights to read) is a warning. quantised: the method
    by which the served weights were packed, if any: they then have to agree in their landmarks.
    """
    for name in ("architectures", "hidden_size", "num_layers", "vocab_size"):
        ours, theirs = getattr(trained, name), getattr(served, name)
        if ours != theirs:
            raise AdapterError(
                f"the adapter was trained on {trained.name!r} with {name} {_plain(ours)}, and the "
                f"served {served.name!r} has {_plain(theirs)}. Serve the adapter's own backbone, "
                "or train one on this base; no option overrides a different architecture or "
                "shape."
            )
    if served.fingerprint is None:
        unknown = (
            f"the weights of the served {served.name!r} could not be fingerprinted (dummy or not "
            f"safetensors); whether they are those of {trained.name!r}, on which the adapter was "
            "trained, is unknown."
        )
        return [unknown]
    if trained.fingerprint == served.fingerprint:
        return []
    if quant_method and trained.landmarks and served.landmarks:
        return _require_copy(trained, served, quant_method, allow_mismatch=allow_mismatch)
    difference = (
        f"the adapter was trained on {trained.name!r} with weights "
        f"{trained.fingerprint or 'unknown'}, and the served {served.name!r} has "
        f"{served.fingerprint}"
    )
    if not allow_mismatch:
        raise AdapterError(
            f"{difference}. Serve the adapter's own backbone, or, where you know that they are "
            "close enough (a quantised or re-saved copy), set allow_backbone_mismatch to true."
        )
    return [f"{difference}; going on, as allow_backbone_mismatch says. Rewards may mean little."]


def _require_copy(
    trained: Backbone, served: Backbone, method: str, *, allow_mismatch: bool
) -> list[str]:
    said = f"the served {served.name!r} is quantised ({method})"
    whose = f"that of {trained.name!r}, on which the adapter was trained"
    if samples_match(trained.landmarks or (), served.landmarks or ()):
        return [f"{said}; its token embedding is {whose}. The packed weights cannot be compared."]
    difference = f"{said}, and its token embedding is not {whose}"
    if not allow_mismatch:
        raise AdapterError(
            f"{difference}: a copy of another model, or one whose hidden states were rotated. Serve one that "
            "was quantised from the adapter's own backbone, without a rotation, or, where you know better, "
            "set allow_backbone_mismatch to true."
        )
    return [f"{difference}; going on, as allow_backbone_mismatch says. Rewards may mean little."]


def _plain(value: object) -> str:
    return listed(value) if isinstance(value, tuple) else str(value)


def _name(path: Path) -> str:
    """`org/name` for a snapshot in the hub's cache, else the folder's own name."""
    for parent in path.resolve().parents:
        if parent.name.startswith("models--"):
            return parent.name.removeprefix("models--").replace("--", "/")
    return path.resolve().name
