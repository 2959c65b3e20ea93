"""Engine-wide settings: what `--additional-config '{"pad": {...}}'` may say.

In: the mapping vLLM keeps as `additional_config`. Out: one frozen `PADConfig`, every field checked.
It does not open the adapter, and imports neither torch nor vLLM: the front end reads it too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from pad_vllm.wording import did_you_mean, listed, short_repr

PAD_KEY = "pad"
COMPILE_CACHE_KEY = "_compile_key"
"""The loader's entry beside the settings: vLLM hashes it into the key of its compile cache."""

LOAD_FORMAT = "pad"
LOGITS_PROCESSOR = "pad_vllm:PADLogitsProcessor"
"""With the settings under KEY, what switches PAD on: vLLM's --load-format and --logits-processors."""

ENGINES = ("shared", "resident", "ray")
_EXAMPLE = """--additional-config '{"pad": {"adapter": "PATH"}}'"""


def _not_pad_itself(load_format: str) -> str:
    # vLLM lowers load formats before it looks them up.
    if load_format.strip().lower() == LOAD_FORMAT:
        raise ValueError(
            f"additional_config['pad']['load_format'] is {load_format!r}, which would make PAD's loader "
            "load through itself. This one is the format underneath: accepted is any other load "
            "format of vLLM. Leave it out for 'auto'; '--load-format pad' stays on the command "
            "line."
        )
    return load_format


_Text = Annotated[str, Field(description="text")]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
_Count = Annotated[int, Field(ge=1, description="an integer of at least 1")]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(strict=True))
class PADConfig:
    """The settings of one engine. Raises ValueError: the value, what is accepted, the way out."""

    adapter: Annotated[
        str, Field(pattern=r"\S", description="the path of an adapter folder, as text")
    ]
    """Folder of the adapter: pad_config.json, the PEFT LoRA and the preference heads."""

    adapters: Annotated[
        dict[str, Annotated[str, Field(pattern=r"\S")]],
        Field(description='names and folders, such as {"work": "PATH"}'),
    ] = dataclasses.field(default_factory=dict)
    """More adapters by the name that a request gives as `pad_adapter`; all are heads alone, on one base, and
    served by `shared`. Requests that name none have `adapter`.
    """

    engine: Annotated[
        Literal["shared", "resident", "ray"], Field(description="shared, resident, ray")
    ] = "shared"
    """Where the reward model runs: `shared` forks it inside the served model, `resident` has one of its
    own in vLLM's worker, `ray` in Ray actors.
    """

    backbone: _Text = ""
    """The reward model's backbone, for `resident` and `ray`: a folder, or a hub name, which may end in
    `@revision`. Empty: the one that the adapter names, which has to be on this machine.
    """

    device: _Text = ""
    """Where `resident` runs its model, as torch writes it (`cuda:1`, `cpu`); empty: beside the base."""

    cache_gib: _Positive = 1.0
    """KV cache of the reward model in GiB, allocated when it loads; per actor with `ray`."""

    pass_tokens: Annotated[int, Field(ge=16, description="an integer of at least 16")] = 2048
    """Most tokens in one pass of the reward model: long prompts are read in pieces of this."""

    candidates: Annotated[Literal["exact", "first"], Field(description="exact, first")] = "exact"
    """With another tokenizer: score all tokens of a candidate's text (`exact`) or its `first`."""

    load_format: Annotated[
        str,
        Field(
            pattern=r"\S", description="one of vLLM's load formats (auto, safetensors, dummy, ...)"
        ),
        AfterValidator(_not_pad_itself),
    ] = "auto"
    """How vLLM reads the backbone's weights: what `--load-format` would say without PAD."""

    max_beta: Annotated[
        float, Field(gt=0, le=1e6, description="a number above 0 and at most 1e6")
    ] = 10.0
    """Largest |pad_beta| a request may ask for."""

    max_top_k: _Count = 100
    """Largest pad_top_k a request may ask for."""

    allow_backbone_mismatch: Annotated[bool, Field(description="true or false")] = False
    """Serve a base with other weights than the adapter was trained on: a warning, no refusal."""

    chat_template: _Text = ""
    """The base's chat template, a file or the text, where vLLM was given one with --chat-template: the
    reward model finds the conversation in the base's prompt by it. Empty: the tokenizer's own.
    """

    ray_address: _Text = ""
    """Ray cluster to join, as `ray.init(address=...)` takes it; empty: start one on this machine."""

    ray_actors: _Count = 1
    """Reward models in the pool."""

    ray_resources: Annotated[
        dict[str, _Amount],
        Field(description='names and amounts, such as {"num_gpus": 1} or {"num_cpus": 2}'),
    ] = dataclasses.field(default_factory=dict)
    """What each actor asks Ray for, such as {"num_gpus": 1}; {} asks for one CPU."""

    ray_deadline_s: _Positive = 2.0
    """Longest wait of a step for its rewards. It is waited out while an actor's answer times are not known,
    and after it was late; else a step waits four times the slowest of the last answers, and at least a
    quarter of this. One that stays late is asked ever more rarely: a hundredth of the time goes to it.
    """

    on_failure: Annotated[Literal["unguided", "stop"], Field(description="unguided, stop")] = (
        "unguided"
    )
    """A row whose rewards do not come, from a dead or late actor: goes on `unguided`, or `stop`s."""

    reasoning: Annotated[Literal["guided", "unguided"], Field(description="guided, unguided")] = (
        "guided"
    )
    """A reasoning model's <think> part: `guided` as its answer is, or `unguided`, as the base thinks."""

    @classmethod
    def from_additional_config(cls, additional_config: Mapping[str, Any] | None) -> "PADConfig":
        """Reads `additional["pad"]`; COMPILE_KEY in it is the loader's own."""
        given = dict(_section(additional_config))
        given.pop(COMPILE_CACHE_KEY, None)
        known = [field.name for field in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(
                    f"additional_config['pad'] has an unknown key {short_repr(name)}.{hint} "
                    f"Accepted: {listed(known)}. Remove or rename it."
                )
        if "adapter" not in given:
            raise ValueError(
                f"additional_config['pad'] names no adapter (it has: {listed(given)}). "
                f"Add the adapter's folder: {_EXAMPLE}."
            )
        try:
            return cls(**given)
        except ValidationError as error:
            raise _refusal(error) from None


def _section(additional: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if additional is not None and not isinstance(additional, Mapping):
        raise ValueError(
            f"additional_config is {short_repr(additional)}, and PAD reads its settings from a JSON "
            f"object. Pass {_EXAMPLE}."
        )
    if not additional or PAD_KEY not in additional:
        raise ValueError(
            f"additional_config has no 'pad' entry (it has: {listed(map(str, additional or ()))}), "
            f"so PAD does not know its adapter. Pass {_EXAMPLE}."
        )
    section = additional[PAD_KEY]
    if not isinstance(section, Mapping) or not all(isinstance(name, str) for name in section):
        raise ValueError(
            f"additional_config['pad'] is {short_repr(section)}, and a JSON object is accepted. Pass "
            f"{_EXAMPLE}."
        )
    return section


_ACCEPTED = {
    name: hint.__metadata__[0].description
    for name, hint in get_type_hints(PADConfig, include_extras=True).items()
}
"""Setting -> what a refusal says is accepted: the description that its type begins with."""


def _refusal(error: ValidationError) -> ValueError:
    """The first wrong value: which, what is accepted, the way out."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":  # a validator of our own, whose message says it all
        return ValueError(str(first["ctx"]["error"]))
    name = str(first["loc"][0])
    accepted = _ACCEPTED[name]
    return ValueError(
        f"additional_config['pad']['{name}'] is {short_repr(first['input'])}; accepted is {accepted}. "
        "Correct it, or leave it out where it has a default."
    )
