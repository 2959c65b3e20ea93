"""`pad_config.json`: what an adapter says about itself, and which backbone it belongs to.

In: an adapter's folder. Out: a frozen `AdapterConfig`, checked. It reads no tensor and imports no torch, so
that the names of the dimensions cost little; `adapter.py` holds the tensors, `folder.py` reads and writes
them.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.json_fields import (
    AdapterError,
    as_tuple,
    is_number,
    parse_json_object,
    require_field,
    require_integer,
    require_keys,
)
from pad_vllm.params import NO_REPEAT_LENGTHS
from pad_vllm.wording import listed, short_repr

FORMAT_1 = 1
"""What is written wherever it says enough, so that every release loads it."""

FORMAT_2 = 2
"""Beyond version 1: a fork at the top, which has no LoRA, and constants in the heads."""

CONFIG_FILE = "pad_config.json"
DIMENSION_NAME = re.compile(
    r"[A-Za-z][A-Za-z0-9_-]*"
)  # free of the , = { } and blanks of pad_weights
MAX_BETA = 1e6


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
        require_field(isinstance(self.backbone, Backbone), "backbone", self.backbone, "an object")
        top = self.backbone.num_layers
        last = top - 1 if self.format_version == FORMAT_1 else top
        require_integer("fork_layer", self.fork_layer, 0, last)
        _require_dimensions(self.dimensions)
        require_integer("head_rank", self.head_rank, 1)
        within = is_number(self.beta) and abs(self.beta) <= MAX_BETA
        require_field(within, "beta", self.beta, f"a number from -{MAX_BETA:g} to {MAX_BETA:g}")
        require_integer("top_k", self.top_k, 1, self.backbone.vocab_size)
        require_field(isinstance(self.training, dict), "training", self.training, "a JSON object")
        require_field(
            type(self.no_repeat) is int and self.no_repeat in NO_REPEAT_LENGTHS,
            "no_repeat",
            self.no_repeat,
            f"one of {listed(map(str, NO_REPEAT_LENGTHS))}",
        )
        share = is_number(self.min_p) and 0 <= self.min_p <= 1
        require_field(share, "min_p", self.min_p, "a number from 0 to 1")
        template = self.chat_template
        named = template is None or (isinstance(template, str) and template)
        require_field(named, "chat_template", template, "a Jinja template's text, or none at all")
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
        raw = parse_json_object(text)
        _require_version(raw.get("format_version"))
        require_keys("", {**_LATER, **raw}, cls)
        backbone = raw["backbone"]
        require_field(isinstance(backbone, dict), "backbone", backbone, "an object")
        backbone = {**_BACKBONE_LATER, **backbone}
        require_keys("backbone.", backbone, Backbone)
        lists = {name: as_tuple(backbone[name]) for name in ("architectures", "landmarks")}
        backbone = Backbone(**{**backbone, **lists})
        return cls(**{**raw, "backbone": backbone, "dimensions": as_tuple(raw["dimensions"])})


_LATER: dict[str, Any] = {"no_repeat": 0, "min_p": 0.0, "chat_template": None}
"""Fields that a pad_config.json may leave out, and what they then are."""

_BACKBONE_LATER: dict[str, Any] = {"landmarks": None}
"""The same of its `backbone`."""


def _used(values: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in values.items() if name not in later or v != later[name]}


def format_version_for(*, heads_only: bool, constants: bool) -> int:
    """The format version that an adapter with these parts is written as."""
    return FORMAT_2 if heads_only or constants else FORMAT_1


def training_sections(config: AdapterConfig) -> list[dict[str, Any]]:
    """`training` of each adapter that was merged into this one; of one that was not, its own."""
    return list(config.training.get("parts") or [config.training])


def read_config(path: str | Path) -> AdapterConfig:
    """The config of the adapter in folder `path`, its tensors unread. Raises AdapterError."""
    folder = require_adapter_folder(path)
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


def require_adapter_folder(path: str | Path) -> Path:
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


def _require_version(version: object) -> None:
    if type(version) is not int or version not in (FORMAT_1, FORMAT_2):
        raise AdapterError(
            f"format_version is {short_repr(version)}; this pad_vllm reads {FORMAT_1} and "
            f"{FORMAT_2}. Upgrade pad_vllm, or train or convert the adapter with a release that "
            "writes one of these versions."
        )


def _require_dimensions(names: object) -> None:
    accepted = "at least one name such as 'helpful': a letter, then letters, digits, _ and -"
    require_field(isinstance(names, tuple) and names, "dimensions", names, accepted)
    assert isinstance(names, tuple)
    for name in names:
        require_field(
            isinstance(name, str) and DIMENSION_NAME.fullmatch(name), "a dimension", name, accepted
        )
        require_field(
            names.count(name) == 1,
            "dimensions",
            names,
            f"each name once, and {name!r} is there twice",
        )
