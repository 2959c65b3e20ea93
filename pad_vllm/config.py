"""Engine-wide settings: what `--additional-config '{"pad": {...}}'` may say.

In: the mapping vLLM keeps as `additional_config`. Out: one frozen `PADConfig`, every field checked.
It does not open the adapter, and imports neither torch nor vLLM: the front end reads it too.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pad_vllm.wording import did_you_mean, listed, show

KEY = "pad"
LOAD_FORMAT = "pad"
PROCESSOR = "pad_vllm:PADLogitsProcessor"
"""With the settings under KEY, what switches PAD on: vLLM's --load-format and --logits-processors."""

ENGINES = ("shared", "resident", "ray")
CANDIDATES = ("exact", "first")
FAILURES = ("unguided", "stop")
_EXAMPLE = """--additional-config '{"pad": {"adapter": "PATH"}}'"""


@dataclasses.dataclass(frozen=True)
class PADConfig:
    """The settings of one engine. Raises ValueError: the value, what is accepted, the way out."""

    adapter: str
    """Folder of the adapter: pad_config.json, the PEFT LoRA and the preference heads."""

    engine: str = "shared"
    """Where the reward model runs: `shared` forks it inside the served model, `resident` has one of its
    own in vLLM's worker, `ray` in Ray actors.
    """

    backbone: str = ""
    """The reward model's backbone, a folder or hub name, for `resident` and `ray`; empty: the one that
    the adapter names.
    """

    device: str = ""
    """Where `resident` runs its model, as torch writes it (`cuda:1`, `cpu`); empty: beside the base."""

    cache_gib: float = 1.0
    """KV cache of the reward model in GiB, taken when it loads; each actor's own with `ray`."""

    pass_tokens: int = 2048
    """Most tokens in one pass of the reward model: long prompts are read in pieces of this."""

    candidates: str = "exact"
    """With another tokenizer: score all tokens of a candidate's text (`exact`) or its `first`."""

    load_format: str = "auto"
    """How vLLM reads the backbone's weights: what `--load-format` would say without PAD."""

    max_beta: float = 10.0
    """Largest |pad_beta| a request may ask for."""

    max_top_k: int = 100
    """Largest pad_top_k a request may ask for."""

    allow_backbone_mismatch: bool = False
    """Serve a base with other weights than the adapter was trained on: a warning, no refusal."""

    chat_template: str = ""
    """The base's chat template, a file or the text, where vLLM was given one with --chat-template: the
    reward model finds the conversation in the base's prompt by it. Empty: the tokenizer's own.
    """

    ray_address: str = ""
    """Ray cluster to join, as `ray.init(address=...)` takes it; empty: start one on this machine."""

    ray_actors: int = 1
    """Reward models in the pool."""

    ray_resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """What each actor asks Ray for, such as {"num_gpus": 1}; {} asks for one CPU."""

    ray_deadline_s: float = 2.0
    """Longest wait of a step for its rewards."""

    on_failure: str = "unguided"
    """A row whose rewards do not come, from a dead or late actor: goes on `unguided`, or `stop`s."""

    def __post_init__(self) -> None:
        _check_text("adapter", self.adapter, "the path of an adapter folder")
        _check_choice("engine", self.engine, ENGINES)
        _check_choice("candidates", self.candidates, CANDIDATES)
        _check_choice("on_failure", self.on_failure, FAILURES)
        for name in ("backbone", "device", "chat_template", "ray_address"):
            if not isinstance(getattr(self, name), str):
                raise _wrong(name, getattr(self, name), "text")
        _check_positive("cache_gib", self.cache_gib)
        _check_positive("ray_deadline_s", self.ray_deadline_s)
        _check_whole("pass_tokens", self.pass_tokens, 16)
        _check_whole("ray_actors", self.ray_actors, 1)
        _check_resources(self.ray_resources)
        _check_load_format(self.load_format)
        _check_max_beta(self.max_beta)
        _check_whole("max_top_k", self.max_top_k, 1)
        if not isinstance(self.allow_backbone_mismatch, bool):
            raise _wrong("allow_backbone_mismatch", self.allow_backbone_mismatch, "true or false")
        object.__setattr__(self, "max_beta", float(self.max_beta))

    @classmethod
    def from_additional_config(cls, additional: Mapping[str, Any] | None) -> "PADConfig":
        """Reads `additional["pad"]`. Keys that begin with `_` are the loader's own (its entry in
        vLLM's compile cache key) and are passed over.
        """
        given = {name: value for name, value in _section(additional).items() if name[:1] != "_"}
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(
                    f"additional_config['pad'] has an unknown key {show(name)}.{hint} "
                    f"Accepted: {listed(known)}. Remove or rename it."
                )
        if "adapter" not in given:
            raise ValueError(
                f"additional_config['pad'] names no adapter (it has: {listed(given)}). "
                f"Add the adapter's folder: {_EXAMPLE}."
            )
        return cls(**given)


def _section(additional: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if additional is not None and not isinstance(additional, Mapping):
        raise ValueError(
            f"additional_config is {show(additional)}, and PAD reads its settings from a JSON "
            f"object. Pass {_EXAMPLE}."
        )
    if not additional or KEY not in additional:
        raise ValueError(
            f"additional_config has no 'pad' entry (it has: {listed(map(str, additional or ()))}), "
            f"so PAD does not know its adapter. Pass {_EXAMPLE}."
        )
    section = additional[KEY]
    if not isinstance(section, Mapping) or not all(isinstance(name, str) for name in section):
        raise ValueError(
            f"additional_config['pad'] is {show(section)}, and a JSON object is accepted. Pass "
            f"{_EXAMPLE}."
        )
    return section


def _wrong(name: str, value: object, accepted: str) -> ValueError:
    return ValueError(
        f"additional_config['pad']['{name}'] is {show(value)}; accepted is {accepted}. "
        "Correct it, or leave it out where it has a default."
    )


def _check_text(name: str, value: object, accepted: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(name, value, f"{accepted}, as text")


def _check_choice(name: str, value: object, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise _wrong(name, value, listed(accepted))


def _check_load_format(value: object) -> None:
    _check_text("load_format", value, "one of vLLM's load formats (auto, safetensors, dummy, ...)")
    if str(value).strip().lower() == KEY:  # vLLM lowers load formats before it looks them up
        raise ValueError(
            f"additional_config['pad']['load_format'] is {value!r}, which would make PAD's loader "
            "load through itself. This one is the format underneath: accepted is any other load "
            "format of vLLM. Leave it out for 'auto'; '--load-format pad' stays on the command "
            "line."
        )


def _check_max_beta(value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= 1e6:  # type: ignore[operator]
        raise _wrong("max_beta", value, "a number above 0 and at most 1e6")


def _check_positive(name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:  # type: ignore[operator]
        raise _wrong(name, value, "a number above 0")


def _check_whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _wrong(name, value, f"an integer of at least {least}")


def _check_resources(value: object) -> None:
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(amount, int | float) and amount >= 0
        for name, amount in value.items()
    ):
        accepted = 'names and amounts, such as {"num_gpus": 1} or {"num_cpus": 2}'
        raise _wrong("ray_resources", value, accepted)
