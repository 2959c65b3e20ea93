"""Engine-wide settings: what `--additional-config '{"pad": {...}}'` may contain.

In: the mapping vLLM keeps as `additional_config`. Out: one frozen `PADConfig`, every field checked.
It does not open the adapter, and imports neither torch nor vLLM: `pad-vllm serve` checks settings with it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from pad_vllm.wording import did_you_mean, listed, short_repr

PAD_KEY = "pad"
"""Key of PAD's settings in vLLM's additional_config."""

COMPILE_CACHE_KEY = "_compile_key"
"""Key of the loader's own entry beside the settings: vLLM hashes it into the key of its compile cache."""

LOAD_FORMAT = "pad"
LOGITS_PROCESSOR = "pad_vllm:PADLogitsProcessor"
"""Values of vLLM's --load-format and --logits-processors that, with the settings, switch PAD on."""

ENGINES = ("shared", "resident", "ray")
"""Where the reward model can run: see PADConfig.engine."""

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


# Each type begins with the description that a refusal quotes.
_Text = Annotated[str, Field(description="text")]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number above 0")]
_Count = Annotated[int, Field(ge=1, description="an integer of at least 1")]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=ConfigDict(strict=True))
class PADConfig:
    """The settings of one engine. Raises ValueError: the value, what is accepted, the way out."""

    adapter: Annotated[
        str, Field(pattern=r"\S", description="the path of an adapter folder, as text")
    ] = ""
    """Folder of the adapter: pad_config.json, the PEFT LoRA and the preference heads. Empty, with
    `instructions`: requests have no dimensions.
    """

    instructions: Annotated[bool, Field(description="true or false")] = False
    """Whether requests may say what they prefer in a sentence, `pad_preference`, which the layers from
    `fork_layer` up read in front of the text. For `shared`, without an adapter or with heads only.
    """

    fork_layer: Annotated[int | None, Field(ge=0, description="the number of a layer, from 0")] = (
        None
    )
    """With `instructions`: the first layer that reads them; None: from 0.4 of the layers up
    (serving/start/instruction_settings.py).
    """

    max_instructions: Annotated[
        int, Field(ge=1, le=4096, description="an integer from 1 to 4096")
    ] = 32
    """With `instructions`: different ones that requests may have at once; their KV blocks are reserved."""

    max_instruction_tokens: Annotated[
        int, Field(ge=1, le=4096, description="an integer from 1 to 4096")
    ] = 128
    """With `instructions`: most places in KV blocks that one takes: its tokens twice, or once with what the
    chat template puts before them.
    """

    adapters: Annotated[
        dict[str, Annotated[str, Field(pattern=r"\S")]],
        Field(description='names and folders, such as {"work": "PATH"}'),
    ] = dataclasses.field(default_factory=dict)
    """More adapters, by the name that a request gives as `pad_adapter`. All must be heads only on one base,
    and are served by `shared`. Requests without a name are guided by `adapter`.
    """

    adapter_root: _Text = ""
    """Folder below which clients may have adapters loaded while the server runs; empty: the folders that hold
    `adapter` and `adapters`.
    """

    engine: Annotated[
        Literal["shared", "resident", "ray"], Field(description="shared, resident, ray")
    ] = "shared"
    """Where the reward model runs: `shared` forks it inside the served model, `resident` runs a separate
    model in vLLM's worker, `ray` runs separate models in Ray actors.
    """

    backbone: _Text = ""
    """The reward model's backbone, for `resident`, `ray` and `profile_reader`: a folder, or a hub name, which
    may end in `@revision`. Empty: the backbone that the adapter names, which has to be on this machine; for
    `profile_reader` beside `shared` the served base.
    """

    device: _Text = ""
    """torch.device on which `resident` runs its model (`cuda:1`, `cpu`); empty: the base's."""

    cache_gib: _Positive = 1.0
    """KV cache of the reward model in GiB, allocated when it loads; per actor with `ray`."""

    pass_tokens: Annotated[int, Field(ge=16, description="an integer of at least 16")] = 2048
    """Largest number of tokens in one pass of the reward model: longer prompts are read in pieces."""

    candidates: Annotated[Literal["exact", "first"], Field(description="exact, first")] = "exact"
    """Where base and reward model have different tokenizers: score all of the reward model's tokens of a
    candidate's text (`exact`), or only the `first`.
    """

    load_format: Annotated[
        str,
        Field(
            pattern=r"\S", description="one of vLLM's load formats (auto, safetensors, dummy, ...)"
        ),
        AfterValidator(_not_pad_itself),
    ] = "auto"
    """How vLLM reads the base's weights: what `--load-format` would say without PAD."""

    max_beta: Annotated[
        float, Field(gt=0, le=1e6, description="a number above 0 and at most 1e6")
    ] = 10.0
    """Largest |pad_beta| a request may ask for."""

    max_top_k: _Count = 100
    """Largest pad_top_k a request may ask for."""

    allow_backbone_mismatch: Annotated[bool, Field(description="true or false")] = False
    """Serve a base with other weights than the adapter was trained on: log a warning, do not refuse."""

    chat_template: _Text = ""
    """The base's chat template, a file or the text, where vLLM was given one with --chat-template. PAD needs
    it to find the conversation for the reward model in the base's prompt. Empty: the tokenizer's own.
    """

    ray_address: _Text = ""
    """Ray cluster to join, as `ray.init(address=...)` takes it; empty: start one on this machine."""

    ray_actors: _Count = 1
    """Number of Ray actors, each with a reward model."""

    ray_resources: Annotated[
        dict[str, _Amount],
        Field(description='names and amounts, such as {"num_gpus": 1} or {"num_cpus": 2}'),
    ] = dataclasses.field(default_factory=dict)
    """Resources that each actor requests from Ray, such as {"num_gpus": 1}; {} requests one CPU."""

    ray_deadline_s: _Positive = 2.0
    """Longest time in seconds that a step waits for its rewards. A step waits that long while an actor's
    answer times are unknown, and after the actor was late; otherwise four times the slowest of its last
    answers, and at least a quarter of this. An actor that stays late is asked ever more rarely, so that
    waiting for it takes a hundredth of the time.
    """

    on_failure: Annotated[Literal["unguided", "stop"], Field(description="unguided, stop")] = (
        "unguided"
    )
    """What happens to a row whose rewards do not come, from a dead or late actor, or as its prompt is not
    translated for the reward model yet: it goes on `unguided`, or its answer ends (`stop`). A step waits for
    prompts for a quarter of a second, with `stop` for ten seconds, and not while one is late already.
    """

    page: Annotated[bool, Field(description="true or false")] = False
    """Whether the server has the page at /pad/, which needs no API key itself."""

    dimension_jobs: Annotated[bool, Field(description="true or false")] = False
    """Whether clients may have dimensions made from sentences: the server then runs training commands, which
    write below `adapter_root`.
    """

    reasoning: Annotated[Literal["guided", "unguided"], Field(description="guided, unguided")] = (
        "guided"
    )
    """Whether a reasoning model's <think> part is `guided` as the answer is, or left `unguided`."""

    profiles: _Text = ""
    """Database of users: a file (SQLite), or postgresql://USER@HOST/DATABASE without a password. Requests may
    then name a user, `pad_user`, in place of weights. Empty: there are none.
    """

    unknown_user: Annotated[
        Literal["unguided", "refuse"], Field(description="unguided, refuse")
    ] = "unguided"
    """What becomes of a request that names a user without a profile: answered `unguided`, or refused."""

    profile_prior: _Text = ""
    """File of what people have in common, with which few choices of a user say more; `pad-vllm fit --out`
    writes it for many users. Empty: nothing is known of people.
    """

    profile_reader: Annotated[
        str,
        Field(pattern=r"^((cpu|cuda|xpu)(:[0-9]{1,3})?)?$", description="cpu, cuda, xpu or cuda:N"),
    ] = ""
    """torch.device on which a process of its own opens the adapter's base once more, to read what people
    write to their profiles: two answers to choose between, or a sentence. Empty: profiles take neither.
    """

    learn_from_conversations: Annotated[bool, Field(description="true or false")] = False
    """Whether profiles learn from the conversations of their users, which `profile_reader` then reads."""

    profile_tokens: _Text = ""
    """Where the secret is by which users' tokens are signed: `env:NAME` of an environment variable, or a
    file. Empty: whoever may ask the server may name any user.
    """

    @classmethod
    def from_additional_config(cls, additional_config: Mapping[str, Any] | None) -> "PADConfig":
        """The settings in `additional_config["pad"]`, but for the loader's COMPILE_CACHE_KEY.

        Raises ValueError for a missing section or adapter, an unknown key, or a value that is not accepted.
        """
        settings = dict(_section(additional_config))
        settings.pop(COMPILE_CACHE_KEY, None)
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(
                    f"additional_config['pad'] has an unknown key {short_repr(name)}.{hint} "
                    f"Accepted: {listed(known)}. Remove or rename it."
                )
        if "adapter" not in settings and settings.get("instructions") is not True:
            raise ValueError(
                f"additional_config['pad'] names no adapter (it has: {listed(settings)}). "
                f"Add the adapter's folder: {_EXAMPLE}."
            )
        try:
            return cls(**settings)
        except ValidationError as error:
            raise _readable(error) from None


def _section(additional_config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """PAD's section. Raises ValueError where there is none, or it is no JSON object."""
    if additional_config is not None and not isinstance(additional_config, Mapping):
        raise ValueError(
            f"additional_config is {short_repr(additional_config)}, and PAD reads its settings from a JSON "
            f"object. Pass {_EXAMPLE}."
        )
    if not additional_config or PAD_KEY not in additional_config:
        raise ValueError(
            f"additional_config has no 'pad' entry (it has: {listed(map(str, additional_config or ()))}), "
            f"so PAD does not know its adapter. Pass {_EXAMPLE}."
        )
    section = additional_config[PAD_KEY]
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
"""Name of a setting -> the description that its type begins with, which a refusal quotes as accepted."""


def _readable(error: ValidationError) -> ValueError:
    """The first wrong value in a sentence: its name, the value, what is accepted, the way out."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "value_error":  # a validator of our own, whose message says it all
        return ValueError(str(first["ctx"]["error"]))
    name = str(first["loc"][0])
    accepted = _ACCEPTED[name]
    return ValueError(
        f"additional_config['pad']['{name}'] is {short_repr(first['input'])}; accepted is {accepted}. "
        "Correct it, or leave it out where it has a default."
    )
