"""`pad_config.json`: what an adapter says about itself, and which backbone it belongs to.

In: an adapter's folder, a checkpoint's config.json. Out: frozen `AdapterConfig` and `Backbone`,
checked. It reads no tensor of the adapter and imports no torch, so that the names of the dimensions
cost little; `adapter.py` holds the tensors, `folder.py` reads and writes them.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pad_vllm.adapter.fingerprint import fingerprint
from pad_vllm.adapter.landmarks import COUNT, alike, landmarks
from pad_vllm.params import NO_REPEATS
from pad_vllm.wording import did_you_mean, listed, show

FORMAT_VERSION = 1
"""What is written wherever it says enough, so that every release loads it."""

HEADS_VERSION = 2
"""Beyond version 1: a fork at the top, which has no LoRA, and constants in the heads."""

CONFIG_FILE = "pad_config.json"
DIMENSION = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")  # free of the , = { } and blanks of pad_weights
MAX_BETA = 1e6


class AdapterError(ValueError):
    """An adapter that is not served: where, the value, what is accepted, the way out."""


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
        _require(isinstance(self.name, str), "backbone.name", self.name, "text")
        names = self.architectures
        _require(
            isinstance(names, tuple)
            and names
            and all(isinstance(name, str) and name for name in names),
            "backbone.architectures",
            names,
            "at least one architecture name",
        )
        for name in ("hidden_size", "num_layers", "vocab_size"):
            _require_whole(f"backbone.{name}", getattr(self, name), 1)
        mark = self.fingerprint
        _require(
            mark is None or (isinstance(mark, str) and re.fullmatch("sha256:[0-9a-f]{64}", mark)),
            "backbone.fingerprint",
            mark,
            "'sha256:' and 64 hex digits, or null",
        )
        known = self.landmarks
        _require(
            known is None
            or (isinstance(known, tuple) and len(known) == COUNT and all(map(_is_number, known))),
            "backbone.landmarks",
            known,
            f"{COUNT} numbers, or none at all",
        )

    @classmethod
    def from_checkpoint(cls, path: Path, name: str | None = None) -> "Backbone":
        """The backbone in a checkpoint's folder: config.json, the weights' fingerprint and landmarks."""
        return cls.from_config(path, name).with_weights(Path(path))

    @classmethod
    def from_config(cls, path: Path, name: str | None = None) -> "Backbone":
        """The same from config.json alone, without a fingerprint: for weights not there."""
        path = Path(path)
        raw = read_json(path / "config.json", "Point to the folder of a Transformers checkpoint.")
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

    def with_weights(self, checkpoint: Path) -> "Backbone":
        """The same with what tells the weights in a folder. Raises ValueError where they cannot be read."""
        return dataclasses.replace(
            self,
            fingerprint=fingerprint(checkpoint),
            landmarks=landmarks(checkpoint, self.vocab_size, self.hidden_size),
        )


@dataclass(frozen=True)
class AdapterConfig:
    """pad_config.json. Raises AdapterError where a field is not what the format accepts."""

    format_version: int
    """FORMAT_VERSION or HEADS_VERSION; any other is refused."""

    backbone: Backbone
    """The model it was trained on."""

    fork_layer: int
    """First layer with LoRA; the base and the reward trunk share the layers below it. num_layers, the top,
    from HEADS_VERSION on: heads only, no LoRA.
    """

    dimensions: tuple[str, ...]
    """Names of the preference dimensions: the order of the heads and of every weight vector."""

    head_rank: int
    """r of the preference heads."""

    beta: float
    """Default strength of guidance."""

    top_k: int
    """Default number of candidates."""

    training: dict[str, Any] = field(default_factory=dict)
    """How it was trained and what it scored held out: free-form JSON, for people."""

    no_repeat: int = 0
    """Default length of the n-grams whose repetition earns no more than the average candidate; 0 is off."""

    min_p: float = 0.0
    """Default share of the best candidate's probability, below which a candidate earns no more; 0 is off."""

    chat_template: str | None = None
    """What its prompts were rendered with, where training was given it; None is the backbone's own."""

    def __post_init__(self) -> None:
        _require_version(self.format_version)
        _require(isinstance(self.backbone, Backbone), "backbone", self.backbone, "an object")
        top = self.backbone.num_layers
        last = top - 1 if self.format_version == FORMAT_VERSION else top
        _require_whole("fork_layer", self.fork_layer, 0, last)
        _require_dimensions(self.dimensions)
        _require_whole("head_rank", self.head_rank, 1)
        within = _is_number(self.beta) and abs(self.beta) <= MAX_BETA
        _require(within, "beta", self.beta, f"a number from -{MAX_BETA:g} to {MAX_BETA:g}")
        _require_whole("top_k", self.top_k, 1, self.backbone.vocab_size)
        _require(isinstance(self.training, dict), "training", self.training, "a JSON object")
        _require(
            type(self.no_repeat) is int and self.no_repeat in NO_REPEATS,
            "no_repeat",
            self.no_repeat,
            f"one of {listed(map(str, NO_REPEATS))}",
        )
        share = _is_number(self.min_p) and 0 <= self.min_p <= 1
        _require(share, "min_p", self.min_p, "a number from 0 to 1")
        template = self.chat_template
        named = template is None or (isinstance(template, str) and template)
        _require(named, "chat_template", template, "a Jinja template's text, or none at all")
        # 1 and 1.0 are one default, and have to give one digest.
        for name in ("beta", "min_p"):
            object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def heads_only(self) -> bool:
        """Whether the fork is at the top: no LoRA, and the reward trunk is the base itself."""
        return self.fork_layer == self.backbone.num_layers

    def to_json(self) -> str:
        """Text of pad_config.json: sorted keys, indent 2, a newline at the end."""
        fields = dataclasses.asdict(self)
        # Without those that are not used, as before there were such fields: one text, one digest.
        values = _used(fields, _LATER)
        values["backbone"] = _used(fields["backbone"], _BACKBONE_LATER)
        try:
            text = json.dumps(values, sort_keys=True, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AdapterError(
                f"{CONFIG_FILE}: 'training' is not plain JSON ({error}); accepted are finite "
                "numbers, text, lists and objects. Convert it first."
            ) from None
        return text + "\n"

    @classmethod
    def from_json(cls, text: str) -> "AdapterConfig":
        """The config in `text`. Raises AdapterError, for another format version before anything else."""
        raw = _parse(text)
        _require_version(raw.get("format_version"))
        _require_keys("", {**_LATER, **raw}, cls)
        backbone = raw["backbone"]
        _require(isinstance(backbone, dict), "backbone", backbone, "an object")
        backbone = {**_BACKBONE_LATER, **backbone}
        _require_keys("backbone.", backbone, Backbone)
        lists = {name: _tuple(backbone[name]) for name in ("architectures", "landmarks")}
        backbone = Backbone(**{**backbone, **lists})
        return cls(**{**raw, "backbone": backbone, "dimensions": _tuple(raw["dimensions"])})


_LATER: dict[str, Any] = {"no_repeat": 0, "min_p": 0.0, "chat_template": None}
"""Fields that a pad_config.json may leave out, and what they then are."""

_BACKBONE_LATER: dict[str, Any] = {"landmarks": None}
"""The same of its `backbone`."""


def _used(values: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in values.items() if name not in later or v != later[name]}


def least_version(*, heads_only: bool, constants: bool) -> int:
    """The format version that an adapter with these parts is written as."""
    return HEADS_VERSION if heads_only or constants else FORMAT_VERSION


def parts_of(config: AdapterConfig) -> list[dict[str, Any]]:
    """`training` of each adapter that was merged into this one; of one that was not, its own."""
    return list(config.training.get("parts") or [config.training])


def read_config(path: str | Path) -> AdapterConfig:
    """The config of the adapter in folder `path`, its tensors unread. Raises AdapterError."""
    folder = adapter_folder(path)
    file = folder / CONFIG_FILE
    if not file.is_file():
        names = sorted(entry.name for entry in folder.iterdir())[:8]
        raise AdapterError(
            f"{folder} has no {CONFIG_FILE} (it has: {listed(names)}). A PAD adapter is a folder "
            "written by `pad-vllm train`; a plain LoRA has no preference heads."
        )
    try:
        return AdapterConfig.from_json(file.read_text("utf-8"))
    except ValueError as error:  # AdapterError without a place, or bytes that are not UTF-8
        raise AdapterError(f"{file}: {error}") from None


def adapter_folder(path: str | Path) -> Path:
    """`path` as an existing folder. Raises AdapterError, which says how to get one."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise AdapterError(
            f"adapter {str(path)!r} is a file; accepted is the folder around {CONFIG_FILE}."
        )
    way_out = f"Check the path (this process runs in {Path.cwd()})."
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        way_out += f" If it is a hub name, fetch it first: hf download {path} --local-dir FOLDER."
    raise AdapterError(
        f"adapter {str(path)!r} does not exist; accepted is a local folder that holds "
        f"{CONFIG_FILE}. {way_out}"
    )


def require_backbone(
    config: AdapterConfig, served: Backbone, *, allow_mismatch: bool = False, quantised: str = ""
) -> list[str]:
    """Raises AdapterError for a backbone that the adapter does not fit; returns warnings to print.

    Architecture and shape always have to match. Other weights are refused, or warned of under
    `allow_mismatch`; a served fingerprint of None (no weights to read) is a warning. quantised: the method
    by which the served weights were packed, if any: they then have to agree in their landmarks.
    """
    trained = config.backbone
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
    if quantised and trained.landmarks and served.landmarks:
        return _require_copy(trained, served, quantised, allow_mismatch=allow_mismatch)
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
    if alike(trained.landmarks or (), served.landmarks or ()):
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


def read_json(file: Path, way_out: str) -> dict[str, Any]:
    if not file.is_file():
        raise AdapterError(f"{file} does not exist. {way_out}")
    try:
        return _parse(file.read_text("utf-8"))
    except ValueError as error:
        raise AdapterError(f"{file}: {error}") from None


def _parse(text: str) -> dict[str, Any]:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"not valid JSON ({error}). Write or copy the file again.") from None
    _require(isinstance(raw, dict), "the file", raw, "a JSON object")
    assert isinstance(raw, dict)
    return raw


def _require(holds: object, name: str, value: object, accepted: str) -> None:
    if not holds:
        raise AdapterError(f"{name} is {show(value)}; accepted: {accepted}. Correct it.")


def _require_version(version: object) -> None:
    if type(version) is not int or version not in (FORMAT_VERSION, HEADS_VERSION):
        raise AdapterError(
            f"format_version is {show(version)}; this pad_vllm reads {FORMAT_VERSION} and "
            f"{HEADS_VERSION}. Upgrade pad_vllm, or train or convert the adapter with a release that "
            "writes one of these versions."
        )


def _require_keys(prefix: str, raw: Mapping[str, Any], of: type) -> None:
    known = [entry.name for entry in dataclasses.fields(of)]
    missing = [name for name in known if name not in raw]
    extra = [name for name in raw if name not in known]
    if missing or extra:
        hint = did_you_mean(extra[0], missing) if extra else ""
        raise AdapterError(
            f"keys missing: {listed(prefix + name for name in missing)}; keys unknown: "
            f"{listed(prefix + name for name in extra)}.{hint} Accepted: exactly {listed(known)}. "
            "Correct the file."
        )


def _require_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    accepted = (
        f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    )
    whole = isinstance(value, int) and not isinstance(value, bool)
    _require(whole and low <= value and (high is None or value <= high), name, value, accepted)  # type: ignore[operator]


def _require_dimensions(names: object) -> None:
    accepted = "at least one name such as 'helpful': a letter, then letters, digits, _ and -"
    _require(isinstance(names, tuple) and names, "dimensions", names, accepted)
    assert isinstance(names, tuple)
    for name in names:
        _require(isinstance(name, str) and DIMENSION.fullmatch(name), "a dimension", name, accepted)
        _require(
            names.count(name) == 1,
            "dimensions",
            names,
            f"each name once, and {name!r} is there twice",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
