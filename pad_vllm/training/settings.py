"""Every choice of a training run, once, in three frozen classes that go into the adapter's pad_config.json.

`Settings` says what is trained on what, `Recipe` how, `DistillationSettings` from which instructions. A
field's type, bound, default and help stand here and nowhere else: pydantic checks them, and the command line
makes an option of most of them. All are plain JSON, so that a run can be identified by their digest, resumed
only as itself, and sent to other machines. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pad_vllm.adapter.manifest import DIMENSION_NAME
from pad_vllm.params import MAX_LOOP_PRICE


def _at_least(minimum: int, help_text: str) -> Any:
    return Field(ge=minimum, description=help_text)


def _with_help(help_text: str) -> Any:
    return Field(description=help_text)


MethodName = Literal["pairs", "scores", "prompt"]
"""How an adapter is trained: see the table in training_methods.py."""

METHOD_NAMES: tuple[str, ...] = get_args(MethodName)

CHANGEABLE_SETTINGS = ("out", "strict", "prompted", "vllm", "cache_gib")
"""Settings that may differ when an unfinished run is resumed: no trained weight depends on them, but for what
was drawn already, which is kept.
"""

_TEACHER_OPTIONAL: dict[str, Any] = {"prefix": None, "gate": False}
"""Fields of DistillationSettings that are written only where their value is another: without them files and
digests are those of releases before.
"""

_OPTIONAL: dict[str, Any] = {"loop_price": 0.0, "vllm": {}, "cache_gib": None}
"""The same for fields of Settings."""

_FINITE = ConfigDict(allow_inf_nan=False)
_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=_FINITE)
class Recipe:
    """How to train. The names are those of `--recipe NAME=VALUE` and of pad_config.json."""

    epochs: Annotated[int, _at_least(0, "Epochs of stage 1, which trains trunk and heads.")] = 1
    head_epochs: Annotated[
        int, _at_least(0, "Epochs of stage 2, which trains the heads on the frozen trunk.")
    ] = 6  # runs no layer of the model: costs little
    groups: _Count = 8  # prompts of an optimiser step
    micro_groups: _Count = 4  # prompts of one forward; gradients of a step are accumulated
    preferences: _Count = 8  # weights w drawn for each prompt and step
    lora_lr: float = 2e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of a stage's steps
    clip: float = 1.0  # maximal norm of the gradient
    b: float = 0.1  # inverse temperature of pairs of responses
    branch_b: float = 1.0  # inverse temperature of pairs that differ in one token
    sharpness: float = 1.0  # of the labels, per spread of a score
    reward_weight: float = 1.0  # weight of the loss over Psi_w
    policy_weight: float = 1.0  # weight of the loss over L_w (DPO)
    branch_weight: float = 1.0  # weight of the loss over next tokens
    branch_share: float = 0.05  # share of the tokens whose alternatives are scored
    candidates: Annotated[int, Field(ge=2)] = 20  # the base's top-k that training sees
    trace: Annotated[float, Field(ge=0, le=1)] = 0.8  # method scores: lambda of GAE, per token
    # method scores: the temperature at which the base drew the responses
    temperature: Annotated[float, Field(gt=0)] = 0.8
    least_margin: float = 0.3  # spreads between the responses of a "clear" held-out pair
    evaluate_every: _Count = 100  # steps between two evaluations on validation prompts
    patience: _Count = 4  # evaluations without a better accuracy after which a stage ends
    validation_prompts: _Count = 96  # validation prompts of one evaluation
    checkpointing: bool = False  # recompute activations in the backward pass: less memory
    seed: Annotated[int, _with_help("Seed of all random numbers.")] = 0

    def __post_init__(self) -> None:
        if not self.epochs and not self.head_epochs:
            raise ValueError(
                "epochs and head_epochs are both 0: nothing would be trained. Raise one"
            )


@dataclass(frozen=True, config=_FINITE)
class PrefixSettings:
    """How learned prefixes are trained, where method "prompt" makes them beside the heads."""

    tokens: Annotated[
        int,
        Field(ge=16, multiple_of=16, description="Virtual tokens of a prefix, whole KV blocks."),
    ] = 32
    fork_layer: Annotated[
        int | None, _at_least(0, "First layer that reads prefixes (default: half of the layers).")
    ] = None
    epochs: Annotated[int, _at_least(1, "Epochs over the answers, for each dimension.")] = 3
    lr: Annotated[float, Field(gt=0)] = 0.02  # in units of the keys' and values' own spread


@dataclass(frozen=True, config=_FINITE)
class DistillationSettings:
    """What method "prompt" learns from: the base with an instruction in its prompt is the teacher."""

    sentences: dict[str, str]  # dimension -> its instruction
    prompts: str = ""  # file for `read_prompts` (sampling/sample_responses.py); "": those that ship
    # dimension -> the instruction of its opposite
    opposites: dict[str, str] = dataclasses.field(default_factory=dict)
    answers: Annotated[
        int,
        _at_least(1, "Prompts that the base answers; of the others only the first token counts."),
    ] = 420
    firsts: Annotated[
        int, _at_least(0, "First-token prompts for each answered prompt, at most.")
    ] = 2
    prefix: PrefixSettings | None = None  # None: no learned prefixes
    gate: bool = True  # whether the heads have gates

    def __post_init__(self) -> None:
        for option, instructions in (
            ("--dimension", self.sentences),
            ("--opposite", self.opposites),
        ):
            for name, sentence in instructions.items():
                if not DIMENSION_NAME.fullmatch(name) or not sentence.strip():
                    raise ValueError(
                        f'{option} {name}={sentence}: NAME="A SENTENCE" is accepted, NAME a letter, '
                        "then letters, digits, _ and -"
                    )
        for name in self.opposites:
            if name not in self.sentences:
                raise ValueError(
                    f"--opposite {name}: there is no --dimension {name} that it could be the opposite "
                    f"of, only {', '.join(self.sentences) or 'none'}. Add it, or correct the name"
                )


@dataclass(frozen=True, config=_FINITE)
class Settings:
    """What to train on what, and where the adapter goes. The names are the command line's options."""

    base: str  # the backbone: a name of `pad-vllm models`, a checkpoint folder or a hub name
    data: tuple[str, ...]  # DataSpec texts (training/data/data_sources.py); () with method prompt
    out: str  # the adapter's folder
    name: Annotated[str | None, _with_help("BASE's name in the model card.")] = None
    dimensions: tuple[str, ...] = ()  # some of those that the data scores; () is all of them
    fork_layer: Annotated[
        int | None,
        _with_help(
            "First layer with LoRA; BASE's number of layers trains heads only (default: three quarters up; "
            "heads only with --teacher scores and --teacher prompt)."
        ),
    ] = None
    lora_rank: Annotated[int, _at_least(1, "Rank of the trunk's LoRA.")] = 16
    head_rank: Annotated[int, _at_least(1, "Rank of the preference heads.")] = 16
    dtype: Annotated[
        str,
        _with_help(
            "Dtype of the frozen backbone: float32 or bfloat16 (default: bfloat16 where this machine has "
            "instructions for it)."
        ),
    ] = "float32"
    max_prompt: Annotated[
        int, _at_least(1, "Maximal tokens of a prompt; longer ones are left out and counted.")
    ] = 256
    max_response: Annotated[
        int | None,
        _at_least(
            2,
            "Maximal tokens of a response; longer ones are cut and counted, and have no score but what a "
            "lexical scorer gives the rest (default: by the data, the 99th percentile of the responses' "
            "lengths, within BASE's context).",
        ),
    ] = None
    validation: Annotated[float, _with_help("Share of the prompts for early stopping.")] = 0.1
    held_out: Annotated[
        float, _with_help("Share of the prompts for the results in the model card.")
    ] = 0.1
    limit: Annotated[int | None, _at_least(1, "Maximal records of each source.")] = None
    strict: Annotated[bool, _with_help("Stop at the first malformed record.")] = False
    prompted: Annotated[
        bool,
        _with_help(
            "With --teacher pairs: also measure, on held-out pairs, the base with the preference in its "
            "prompt; takes minutes."
        ),
    ] = True
    text_preferences: Annotated[
        int,
        _at_least(
            0, "Copies of each prompt that state a preference in words; for the resident engine."
        ),
    ] = 0
    cached: Annotated[bool, _with_help("Keep fork activations on disk.")] = True
    cache_gib: Annotated[
        float | None,
        Field(
            gt=0,
            description="Most GiB of fork activations to keep on disk. Where they take more, the layers "
            "below the fork run again in every step of stage 1 (default: as much as there is room for; "
            "without room they run again on a GPU, and a CPU refuses).",
        ),
    ] = None
    beta: Annotated[float, _with_help("Default strength of the adapter.")] = 1.0
    top_k: Annotated[int, _with_help("Default number of candidates of the adapter.")] = 20
    no_repeat: Annotated[
        int,
        _at_least(
            0, "Default no-repeat guard of the adapter: length of n-grams, 2 to 8; 0 is off."
        ),
    ] = 0
    min_p: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Default min-p guard of the adapter: share of the best candidate's probability; a "
            "candidate below it gets at most the average reward. 0 is off.",
        ),
    ] = 0.0
    loop_price: Annotated[
        float,
        Field(
            ge=0,
            le=MAX_LOOP_PRICE,
            description="Default price of a loop of the adapter, in logits: what a candidate costs that "
            "completes an n-gram already in the answer, for each token from the guard's length on. 0 is off.",
        ),
    ] = 0.0
    chat_template: str | None = None  # text; None is the base's own
    # arguments of the engine that draws the base's answers, by vLLM's names
    vllm: dict[str, Any] = dataclasses.field(default_factory=dict)
    teacher: DistillationSettings | None = None  # with method prompt, and only there
    method: MethodName = "pairs"
    recipe: Recipe = dataclasses.field(default_factory=Recipe)

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"--dtype {self.dtype}: float32 and bfloat16 are accepted")
        shares = {"validation": self.validation, "held_out": self.held_out}
        for name, share in shares.items():
            if not 0 < share < 1 or sum(shares.values()) >= 1:
                raise ValueError(
                    f"{name} {share}: a share of the prompts, above 0, and the two together below "
                    "1, so that something is left to train on"
                )
        if self.method == "prompt" and self.teacher is None:
            raise ValueError(
                "method prompt learns from instructions, and none are given: give DistillationSettings as "
                "`teacher`"
            )
        if self.method != "prompt" and self.teacher is not None:
            raise ValueError(
                f"method {self.method} learns from scored data, not from the instructions of `teacher`: "
                "leave `teacher` out, or use method prompt"
            )

    @property
    def heads_only_by_default(self) -> bool:
        """Whether the run trains heads only, without a trunk, if `fork_layer` is None."""
        return self.method != "pairs"

    @property
    def drawn_tokens(self) -> int:
        """Most tokens of an answer that method prompt draws: there are no lengths yet to choose it by."""
        return 128 if self.max_response is None else self.max_response

    def without_branches(self) -> Settings:
        """These settings for a method that compares no next tokens: no alternative tokens are scored."""
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, branch_share=0.0))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON for settings.json and pad_config.json.

        `method` is written as the keys that these files have always had, so that all versions read it:
        `by_credit` is true for "scores", `teacher` is not null for "prompt".
        """
        values = dataclasses.asdict(self)
        method = values.pop("method")
        if self.teacher is not None:
            for name, unused in _TEACHER_OPTIONAL.items():
                if values["teacher"][name] == unused:
                    del values["teacher"][name]
        for name, unused in _OPTIONAL.items():
            if values[name] == unused:
                del values[name]
        return {**values, "by_credit": method == "scores"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The inverse of `as_dict`. `teacher` and `by_credit` may be missing, as in older files."""
        plain: dict[str, Any] = {
            name: tuple(value) if name in ("data", "dimensions") else value
            for name, value in values.items()
            if name != "by_credit"
        }
        if plain.get("teacher"):
            teacher = DistillationSettings(**{**_TEACHER_OPTIONAL, **plain["teacher"]})
            plain |= {"teacher": teacher, "method": "prompt"}
        elif values.get("by_credit"):
            plain["method"] = "scores"
        return cls(**{**plain, "recipe": Recipe(**values["recipe"])})

    def digest(self) -> str:
        """16 hex digits that identify the run: a resumed run must have the same ones.

        Settings that change no weight (CHANGEABLE_SETTINGS) are not part of it.
        """
        values = {k: v for k, v in self.as_dict().items() if k not in CHANGEABLE_SETTINGS}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
