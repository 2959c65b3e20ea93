"""The identity of the model that an adapter was trained on, and the check that the served model is the same.

In: a checkpoint's folder, or its config. Out: a checked, frozen `Backbone`; warnings or an AdapterError from
`require_same_backbone`. This module imports no torch and reads only samples of the weights.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pad_vllm.adapter.backbone.embedding_sample import SAMPLE_SIZE, sample_embedding, samples_match
from pad_vllm.adapter.backbone.merged_checkpoint import FINGERPRINT, read_merged_lora
from pad_vllm.adapter.backbone.safetensors_headers import stored_tensors
from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint_of_tensors
from pad_vllm.adapter.json_fields import (
    AdapterError,
    is_number,
    read_json_object,
    require_field,
    require_integer,
)
from pad_vllm.merged_lora import MergedLoRA
from pad_vllm.wording import listed

_HIGHEST = {"hidden_size": 1 << 20, "num_layers": 10_000, "vocab_size": 1 << 27}
"""Far above any model: what a file says is counted up to before it is compared with a model's."""


@dataclass(frozen=True)
class Backbone:
    """Identity of the model that an adapter was trained on, or of the served one.

    Raises AdapterError for a field that is not valid.
    """

    name: str
    """Hub name or folder name. It appears in messages and is never compared."""

    architectures: tuple[str, ...]
    """Class names in config.json, such as LlamaForCausalLM."""

    hidden_size: int
    """Hidden size H."""

    num_layers: int
    """Number L of decoder layers."""

    vocab_size: int
    """Vocabulary size V: rows of the token embedding."""

    fingerprint: str | None
    """`weight_fingerprint.fingerprint()` of its weights; None if there are none to read (dummy weights)."""

    embedding_sample: tuple[float, ...] | None = field(default=None, compare=False)
    """SAMPLE_SIZE values of its token embedding, by which a quantised copy is recognised, and a model whose
    weights are in no file; None if not recorded. `landmarks` in pad_config.json.
    """

    merged: MergedLoRA | None = field(default=None, compare=False)
    """The LoRA that was merged into its weights, and into which base; None if there is none."""

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
        for name, highest in _HIGHEST.items():
            require_integer(f"backbone.{name}", getattr(self, name), 1, highest)
        fingerprint = self.fingerprint
        require_field(
            fingerprint is None
            or (isinstance(fingerprint, str) and FINGERPRINT.fullmatch(fingerprint)),
            "backbone.fingerprint",
            fingerprint,
            "'sha256:' and 64 hex digits, or null",
        )
        sample = self.embedding_sample
        require_field(
            sample is None
            or (
                isinstance(sample, tuple)
                and len(sample) == SAMPLE_SIZE
                and all(map(is_number, sample))
            ),
            "backbone.landmarks",
            sample,
            f"{SAMPLE_SIZE} numbers, or none at all",
        )

    @classmethod
    def from_checkpoint(cls, path: Path, name: str | None = None) -> "Backbone":
        """The backbone in a checkpoint's folder, with fingerprint and embedding sample. Raises ValueError."""
        return cls.from_config(path, name).with_weights(Path(path))

    @classmethod
    def from_config(cls, path: Path, name: str | None = None) -> "Backbone":
        """The backbone that a folder's config.json describes, without fingerprint: needs no weights."""
        path = Path(path)
        raw = read_json_object(
            path / "config.json", "Point to the folder of a Transformers checkpoint."
        )
        text_config = raw.get("text_config")
        merged = {**raw, **(text_config if isinstance(text_config, dict) else {})}
        architectures = raw.get("architectures")
        shape: list[Any] = [
            merged.get(key) for key in ("hidden_size", "num_hidden_layers", "vocab_size")
        ]
        if not isinstance(architectures, list) or None in shape:
            # Multimodal checkpoints leave out values that equal the defaults of their config class,
            # which only Transformers knows.
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            return cls.from_hf_config(config, name=name or _name(path))
        hidden_size, num_layers, vocab_size = shape
        return cls(
            name=name or _name(path),
            architectures=tuple(architectures),
            hidden_size=hidden_size,
            num_layers=num_layers,
            vocab_size=vocab_size,
            fingerprint=None,
        )

    @classmethod
    def from_hf_config(
        cls, config: Any, *, name: str, fingerprint: str | None = None
    ) -> "Backbone":
        """The backbone that a Transformers config object describes.

        Args:
            config: Such as vLLM's `model_config.hf_config`.
            name: Name of the model for messages.
            fingerprint: Fingerprint of the weights, if known.

        Returns:
            A backbone without embedding sample.
        """
        text_config = config.get_text_config()
        return cls(
            name=name,
            architectures=tuple(config.architectures or ()),
            hidden_size=text_config.hidden_size,
            num_layers=text_config.num_hidden_layers,
            vocab_size=text_config.vocab_size,
            fingerprint=fingerprint,
        )

    def with_weights(self, checkpoint: Path, *, required: bool = True) -> "Backbone":
        """This backbone with fingerprint and embedding sample of the weights in folder `checkpoint`.

        required: raise ValueError where the weights cannot be read; otherwise return this backbone unchanged.
        """
        try:
            stored = stored_tensors(checkpoint)
        except ValueError:
            if required:
                raise
            return self
        fingerprint = fingerprint_of_tensors(stored)
        return dataclasses.replace(
            self,
            fingerprint=fingerprint,
            embedding_sample=sample_embedding(stored, self.vocab_size, self.hidden_size),
            merged=read_merged_lora(Path(checkpoint), fingerprint),
        )

    @property
    def unmerged(self) -> "Backbone":
        """The base without the LoRA that was merged into it, as vLLM serves it under that LoRA."""
        if self.merged is None:
            return self
        base, fingerprint = self.merged.base, self.merged.base_fingerprint
        return dataclasses.replace(self, name=base, fingerprint=fingerprint, merged=None)


def require_same_backbone(
    trained: Backbone, served: Backbone, *, allow_mismatch: bool = False, quant_method: str = ""
) -> list[str]:
    """Checks that the served model is the backbone that an adapter was trained on.

    Architecture and shape always have to match.

    Args:
        trained: Backbone in the adapter's pad_config.json.
        served: The model to be served. A fingerprint of None (no weights to read) gives a warning.
        allow_mismatch: Warn of other weights instead of refusing them.
        quant_method: Quantisation method of the served weights, empty for none. The embedding samples are
            then compared in place of the fingerprints.

    Returns:
        Warnings to print, one or none.

    Raises:
        AdapterError: Architecture or shape differ, or the weights do and `allow_mismatch` is false.
    """
    for name in ("architectures", "hidden_size", "num_layers", "vocab_size"):
        trained_value, served_value = getattr(trained, name), getattr(served, name)
        if trained_value != served_value:
            raise AdapterError(
                f"the adapter was trained on {trained.name!r} with {name} {_as_text(trained_value)}, and the "
                f"served {served.name!r} has {_as_text(served_value)}. Serve the adapter's own backbone, "
                "or train one on this base; no option overrides a different architecture or "
                "shape."
            )
    if served.fingerprint is None and trained.embedding_sample and served.embedding_sample:
        served_model = f"the weights of the served {served.name!r} are not in its folder"
        return _require_same_embedding(trained, served, served_model, allow_mismatch=allow_mismatch)
    if served.fingerprint is None:
        warning = (
            f"the weights of the served {served.name!r} could not be fingerprinted (dummy or not "
            f"safetensors); whether they are those of {trained.name!r}, on which the adapter was "
            "trained, is unknown."
        )
        return [warning]
    if trained.fingerprint == served.fingerprint:
        return []
    if quant_method and trained.embedding_sample and served.embedding_sample:
        served_model = f"the served {served.name!r} is quantised ({quant_method})"
        return _require_same_embedding(trained, served, served_model, allow_mismatch=allow_mismatch)
    difference = (
        f"the adapter was trained on {trained.name!r} with weights "
        f"{trained.fingerprint or 'unknown'}, and the served {served.name!r} has "
        f"{served.fingerprint}"
    )
    if not allow_mismatch:
        if trained.merged is not None and trained.merged.base_fingerprint == served.fingerprint:
            difference += (
                f": that is {trained.merged.base!r} without the LoRA {trained.merged.lora!r}, which guided "
                "requests need. Start with --enable-lora and ask for that LoRA in each, serve the merged "
                "checkpoint"
            )
            raise AdapterError(f"{difference}, or set allow_backbone_mismatch to true.")
        raise AdapterError(
            f"{difference}. Serve the adapter's own backbone, or, where you know that they are "
            "close enough (a quantised or re-saved copy), set allow_backbone_mismatch to true."
        )
    return [f"{difference}; going on, as allow_backbone_mismatch says. Rewards may mean little."]


def _require_same_embedding(
    trained: Backbone, served: Backbone, served_model: str, *, allow_mismatch: bool
) -> list[str]:
    """served_model: why the fingerprints cannot be compared, for messages."""
    trained_embedding = f"that of {trained.name!r}, on which the adapter was trained"
    if samples_match(trained.embedding_sample or (), served.embedding_sample or ()):
        same = f"{served_model}; its token embedding is {trained_embedding}."
        return [f"{same} Its other weights cannot be compared."]
    difference = f"{served_model}, and its token embedding is not {trained_embedding}"
    if not allow_mismatch:
        raise AdapterError(
            f"{difference}: a copy of another model, or one whose hidden states were rotated. Serve the "
            "adapter's own backbone, or what was quantised from it without a rotation, or, where you know "
            "better, set allow_backbone_mismatch to true."
        )
    return [f"{difference}; going on, as allow_backbone_mismatch says. Rewards may mean little."]


def _as_text(value: object) -> str:
    return listed(value) if isinstance(value, tuple) else str(value)


def _name(path: Path) -> str:
    """`org/name` for a snapshot in the hub's cache, otherwise the name of the folder."""
    for parent in path.resolve().parents:
        if parent.name.startswith("models--"):
            return parent.name.removeprefix("models--").replace("--", "/")
    return path.resolve().name
