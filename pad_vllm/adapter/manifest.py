"""Reads and writes `pad_config.json`: an adapter's backbone, dimensions, defaults and training record.

In: an adapter's folder. Out: a checked, frozen `AdapterConfig`. This module reads no tensor and imports no
torch, so that looking up dimension names is fast; `adapter.py` holds the tensors, `adapter_folder.py` reads
and writes them.
"""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pad_vllm.adapter.backbone.backbone import Backbone
from pad_vllm.adapter.backbone.merged_checkpoint import merged_lora_from_json
from pad_vllm.adapter.json_fields import (
    AdapterError,
    as_tuple,
    is_number,
    parse_json_object,
    read_json_text,
    require_field,
    require_integer,
    require_keys,
)
from pad_vllm.params import MAX_LOOP_PRICE, NO_REPEAT_LENGTHS
from pad_vllm.wording import listed, short_repr

FORMAT_1 = 1
"""Format of an adapter with a LoRA trunk and heads without constants; every release can load it."""

FORMAT_2 = 2
"""Adds to format 1: heads only (a fork at the top, no LoRA) and constants in the heads."""

FORMAT_3 = 3
"""Adds to format 2: learned prefixes beside heads only."""

FORMAT_4 = 4
"""Adds to format 3: gates in the heads; a backbone that a LoRA was merged into, `backbone.merged`."""

CONFIG_FILE = "pad_config.json"
DIMENSION_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""Accepted names: they contain none of the `,`, `=`, `{`, `}` and blanks that separate pad_weights."""

MAX_BETA = 1e6
_DIMENSIONS = "at least one name such as 'helpful': a letter, then letters, digits, _ and -"


@dataclass(frozen=True)
class PrefixConfig:
    """The learned prefixes of an adapter, which requests name as `pad_preference`. Raises AdapterError."""

    fork_layer: int
    """First layer that reads them."""

    num_tokens: int
    """Virtual tokens P of each."""

    digests: dict[str, str]
    """Name -> LearnedPrefix.digest."""

    betas: dict[str, float] = field(default_factory=dict)
    """Name -> default strength; one without has the server's (request_limits.LEARNED_PREFIX_BETA)."""

    def __post_init__(self) -> None:
        require_integer("prefixes.fork_layer", self.fork_layer, 0)
        require_integer("prefixes.num_tokens", self.num_tokens, 1)
        digests = self.digests
        valid = isinstance(digests, dict) and all(map(_is_digest, digests.values()))
        require_field(
            valid and digests, "prefixes.digests", digests, "an object of name and sha256"
        )
        _require_dimensions(tuple(digests))
        betas = self.betas
        require_field(
            isinstance(betas, dict)
            and all(name in digests and _is_strength(beta) for name, beta in betas.items()),
            "prefixes.betas",
            betas,
            f"an object of a prefix's name and a number from -{MAX_BETA:g} to {MAX_BETA:g}",
        )
        object.__setattr__(self, "betas", {name: float(beta) for name, beta in betas.items()})


def _is_strength(value: object) -> bool:
    return is_number(value) and abs(value) <= MAX_BETA


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


@dataclass(frozen=True)
class AdapterConfig:
    """The content of pad_config.json. Raises AdapterError for a field that the format does not accept."""

    format_version: int
    """FORMAT_1 to FORMAT_4; any other is refused."""

    backbone: Backbone
    """The model that the adapter was trained on."""

    fork_layer: int
    """First layer with LoRA; the base and the reward trunk share the layers below it. num_layers, which
    format 2 accepts, is a fork at the top: heads only, no LoRA.
    """

    dimensions: tuple[str, ...]
    """Names of the preference dimensions, in the order of the heads and of every weight vector. A file has
    one at least; a server that only takes instructions has none.
    """

    head_rank: int
    """Rank r of the preference heads."""

    beta: float
    """Default strength of guidance."""

    top_k: int
    """Default number of candidates."""

    training: dict[str, Any] = field(default_factory=dict)
    """How it was trained, and held-out results: free-form JSON that `evaluate`, `merge` and the card read."""

    no_repeat: int = 0
    """Default n of the no-repeat guard: a candidate that completes an n-gram already in the answer gets at
    most the average reward. 0 is off.
    """

    min_p: float = 0.0
    """Default of the min-p guard: a candidate whose probability is below this share of the best candidate's
    gets at most the average reward. 0 is off.
    """

    loop_price: float = 0.0
    """Default price of a loop, of heads and learned prefixes: what a candidate costs, in logits, that
    completes an n-gram already in the answer, for each token from the guard's length on. 0 is off.
    """

    chat_template: str | None = None
    """Jinja template of the training prompts, if one was given to training; None: the backbone's own."""

    prefixes: PrefixConfig | None = None
    """Its learned prefixes; None where it has none."""

    gated: bool = False
    """Whether the heads have gates."""

    def __post_init__(self) -> None:
        _require_version(self.format_version)
        require_field(isinstance(self.backbone, Backbone), "backbone", self.backbone, "an object")
        top = self.backbone.num_layers
        highest_fork = top - 1 if self.format_version == FORMAT_1 else top
        require_integer("fork_layer", self.fork_layer, 0, highest_fork)
        _require_dimensions(self.dimensions)
        require_integer("head_rank", self.head_rank, 1)
        accepted = f"a number from -{MAX_BETA:g} to {MAX_BETA:g}"
        require_field(_is_strength(self.beta), "beta", self.beta, accepted)
        require_integer("top_k", self.top_k, 1, self.backbone.vocab_size)
        require_field(isinstance(self.training, dict), "training", self.training, "a JSON object")
        require_field(
            type(self.no_repeat) is int and self.no_repeat in NO_REPEAT_LENGTHS,
            "no_repeat",
            self.no_repeat,
            f"one of {listed(map(str, NO_REPEAT_LENGTHS))}",
        )
        min_p_valid = is_number(self.min_p) and 0 <= self.min_p <= 1
        require_field(min_p_valid, "min_p", self.min_p, "a number from 0 to 1")
        price_valid = is_number(self.loop_price) and 0 <= self.loop_price <= MAX_LOOP_PRICE
        accepted = f"a number from 0 to {MAX_LOOP_PRICE:g}"
        require_field(price_valid, "loop_price", self.loop_price, accepted)
        template = self.chat_template
        template_valid = template is None or (isinstance(template, str) and template)
        require_field(
            template_valid, "chat_template", template, "a Jinja template's text, or none at all"
        )
        if self.prefixes is not None:
            self._require_prefixes_accepted(self.prefixes)
        self._require_gates_accepted()
        if self.backbone.merged is not None:
            merged_accepted = self.format_version >= FORMAT_4
            version = self.format_version
            require_field(merged_accepted, "format_version", version, "4 for a merged LoRA")
        # 1 and 1.0 are the same default and must give the same digest.
        for name in ("beta", "min_p", "loop_price"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def _require_gates_accepted(self) -> None:
        gated, version = self.gated, self.format_version
        require_field(type(gated) is bool, "gated", gated, "true or false")
        accepted = f"{FORMAT_4} for gated heads"
        require_field(not gated or version >= FORMAT_4, "format_version", version, accepted)

    def _require_prefixes_accepted(self, prefixes: PrefixConfig) -> None:
        version, top = self.format_version, self.backbone.num_layers
        accepted = "3 or more for learned prefixes"
        require_field(version >= FORMAT_3, "format_version", version, accepted)
        accepted = f"heads only, {top} here, beside learned prefixes"
        require_field(self.heads_only, "fork_layer", self.fork_layer, accepted)
        require_integer("prefixes.fork_layer", prefixes.fork_layer, 0, top - 1)

    @property
    def heads_only(self) -> bool:
        """Whether the fork is at the top: there is no LoRA, and h_T equals h_B."""
        return self.fork_layer == self.backbone.num_layers

    def to_json(self) -> str:
        """Text of pad_config.json: sorted keys, indent 2, a newline at the end.

        Raises AdapterError where `training` is not plain JSON.
        """
        fields = dataclasses.asdict(self)
        # Unused optional fields are left out: the text, and so the digest, stays that of the releases
        # before these fields existed.
        values = _without_unused(fields, _OPTIONAL)
        if self.prefixes is not None:
            values["prefixes"] = _without_unused(fields["prefixes"], _PREFIXES_OPTIONAL)
        backbone = {_BACKBONE_KEYS[name]: value for name, value in fields["backbone"].items()}
        values["backbone"] = _without_unused(backbone, _BACKBONE_OPTIONAL)
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
        """The config in `text`. Raises AdapterError; an unknown format version is reported first."""
        raw = parse_json_object(text)
        _require_version(raw.get("format_version"))
        require_keys("", {**_OPTIONAL, **raw}, [field.name for field in dataclasses.fields(cls)])
        require_field(isinstance(raw["backbone"], dict), "backbone", raw["backbone"], "an object")
        raw_backbone = {**_BACKBONE_OPTIONAL, **raw["backbone"]}
        require_keys("backbone.", raw_backbone, list(_BACKBONE_KEYS.values()))
        values = {name: raw_backbone[key] for name, key in _BACKBONE_KEYS.items()}
        for name in ("architectures", "embedding_sample"):
            values[name] = as_tuple(values[name])
        if values["merged"] is not None:
            values["merged"] = merged_lora_from_json(values["merged"], "backbone.merged")
        dimensions = as_tuple(raw["dimensions"])
        require_field(dimensions, "dimensions", dimensions, _DIMENSIONS)
        parts = {"backbone": Backbone(**values), "dimensions": dimensions}
        if (prefixes := raw.get("prefixes")) is not None:
            require_field(isinstance(prefixes, dict), "prefixes", prefixes, "an object")
            fields = [field.name for field in dataclasses.fields(PrefixConfig)]
            require_keys("prefixes.", {**_PREFIXES_OPTIONAL, **prefixes}, fields)
            parts["prefixes"] = PrefixConfig(**prefixes)
        return cls(**{**raw, **parts})


_OPTIONAL: dict[str, Any] = {
    "no_repeat": 0,
    "min_p": 0.0,
    "loop_price": 0.0,
    "chat_template": None,
    "prefixes": None,
    "gated": False,
}
"""Keys that pad_config.json may leave out, and their values then."""

_PREFIXES_OPTIONAL: dict[str, Any] = {"betas": {}}
"""The same for its object `prefixes`."""

_BACKBONE_OPTIONAL: dict[str, Any] = {"landmarks": None, "merged": None}
"""The same for its object `backbone`."""

_BACKBONE_KEYS = {
    field.name: "landmarks" if field.name == "embedding_sample" else field.name
    for field in dataclasses.fields(Backbone)
}
"""Field of Backbone -> its key in pad_config.json, whose keys do not change."""


def _without_unused(values: dict[str, Any], optional: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in values.items() if key not in optional or value != optional[key]
    }


def format_version_for(
    backbone: Backbone, *, heads_only: bool, constants: bool, gated: bool
) -> int:
    """The lowest format version that can describe an adapter with these parts, without learned prefixes."""
    if gated or backbone.merged is not None:
        return FORMAT_4
    return FORMAT_2 if heads_only or constants else FORMAT_1


def training_sections(config: AdapterConfig) -> list[dict[str, Any]]:
    """`training` of each adapter that was merged into this one; its own in a list if it was not merged."""
    return list(config.training.get("parts") or [config.training])


def taught_sentences(config: AdapterConfig) -> dict[str, str]:
    """Dimension -> the instruction that taught it, where the record has one; of several the first."""
    rows = [row for section in training_sections(config) for row in section.get("taught") or []]
    found = {row.get("dimension"): (row.get("sentences") or [None])[0] for row in rows}
    return {name: text for name in config.dimensions if isinstance(text := found.get(name), str)}


def read_config(path: str | Path) -> AdapterConfig:
    """The config of the adapter in folder `path`, without reading its tensors. Raises AdapterError."""
    folder = require_adapter_folder(path)
    file = folder / CONFIG_FILE
    if not file.is_file():
        names = sorted(entry.name for entry in folder.iterdir())[:8]
        raise AdapterError(
            f"{folder} has no {CONFIG_FILE} (it has: {listed(names)}). A PAD adapter is a folder "
            "written by `pad-vllm train`; a plain LoRA has no preference heads."
        )
    try:
        return AdapterConfig.from_json(read_json_text(file))
    except ValueError as error:  # an AdapterError without the file's name, or bytes not in UTF-8
        raise AdapterError(f"{file}: {error}") from None


def require_adapter_folder(path: str | Path) -> Path:
    """`path` as an existing folder. Raises AdapterError, which says how to get an adapter."""
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
    if type(version) is not int or version not in range(FORMAT_1, FORMAT_4 + 1):
        raise AdapterError(
            f"format_version is {short_repr(version)}; this pad_vllm reads {FORMAT_1} to "
            f"{FORMAT_4}. Upgrade pad_vllm, or train or convert the adapter with a release that "
            "writes one of these versions."
        )


def _require_dimensions(names: object) -> None:
    require_field(isinstance(names, tuple), "dimensions", names, _DIMENSIONS)
    assert isinstance(names, tuple)
    known: set[str] = set()
    for name in names:
        require_field(
            isinstance(name, str) and DIMENSION_NAME.fullmatch(name),
            "a dimension",
            name,
            _DIMENSIONS,
        )
        require_field(
            name not in known,
            "dimensions",
            names,
            f"each name once, and {name!r} is there twice",
        )
        known.add(name)
