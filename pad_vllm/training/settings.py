"""What a training run is made of: every choice once, in two frozen classes that go into the model card.

`Settings` says what is trained on what; `Recipe` how. A field's type, bound, default and help stand here and
nowhere else: pydantic checks them, the command line makes an option of them. Both are plain JSON, so that a
run can be named by their digest, resumed only as itself, and sent to other machines. They import no torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from pad_vllm.adapter.manifest import DIMENSION_NAME


def _whole(least: int, description: str) -> Any:
    return Field(ge=least, description=description)


def _said(description: str) -> Any:
    return Field(description=description)


CHANGEABLE_SETTINGS = ("out", "strict", "prompted")
"""Settings that a run may go on with changed: no weight depends on them."""

_FINITE = ConfigDict(allow_inf_nan=False)
_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=_FINITE)
class Recipe:
    """How to train."""

    epochs: Annotated[int, _whole(0, "Stage 1: trunk and heads.")] = 1
    head_epochs: Annotated[int, _whole(0, "Stage 2: heads.")] = 6  # runs no layer: costs little
    groups: _Count = 8  # prompts an optimiser step
    micro_groups: _Count = 4  # of them in one forward; the rest is gradient accumulation
    preferences: _Count = 8  # w drawn for each prompt and step
    lora_lr: float = 2e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of a stage's steps
    clip: float = 1.0  # of the gradient's norm
    b: float = 0.1  # inverse temperature of pairs of responses
    branch_b: float = 1.0  # of pairs that differ in one token
    sharpness: float = 1.0  # of the labels, per spread of a score
    reward_weight: float = 1.0  # of the loss over Psi_w
    policy_weight: float = 1.0  # of the loss over L_w (DPO)
    branch_weight: float = 1.0  # of the loss over next tokens
    branch_share: float = 0.05  # of the tokens whose alternatives are scored
    candidates: Annotated[int, Field(ge=2)] = 20  # the base's top-k that training sees
    trace: Annotated[float, Field(ge=0, le=1)] = 0.8  # by credit: GAE's lambda, a token
    temperature: Annotated[float, Field(gt=0)] = (
        0.8  # by credit: at which the base drew the responses
    )
    least_margin: float = 0.3  # spreads between the responses of a "clear" held-out pair
    evaluate_every: _Count = 100  # steps between looks at the validation pairs, and checkpoints
    patience: _Count = 4  # looks without a better accuracy before a stage ends
    validation_prompts: _Count = 96  # of the validation prompts, looked at each time
    checkpointing: bool = False  # recompute activations in the backward pass: less memory
    seed: Annotated[int, _said("Of everything that is drawn.")] = 0

    def __post_init__(self) -> None:
        if not self.epochs and not self.head_epochs:
            raise ValueError(
                "epochs and head_epochs are both 0: nothing would be trained. Raise one"
            )


@dataclass(frozen=True, config=_FINITE)
class DistillationSettings:
    """What teaches in the place of scores: the base itself, told a sentence (training/taught)."""

    sentences: dict[str, str]  # dimension -> what the base is told
    prompts: str = (
        ""  # file of sampling/sample_responses.py's read_prompts; empty for those that ship
    )
    opposites: dict[str, str] = dataclasses.field(default_factory=dict)
    answers: Annotated[
        int, _whole(1, "Prompts that are answered; of the others the first token is taught.")
    ] = 420
    firsts: Annotated[int, _whole(0, "Such others a prompt that is answered, at most.")] = 2

    def __post_init__(self) -> None:
        for option, told in (("--dimension", self.sentences), ("--opposite", self.opposites)):
            for name, sentence in told.items():
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
    """What to train on what, and where it goes."""

    base: str  # checkpoint folder or hub name of the backbone
    data: tuple[str, ...]  # specs of training/data/data_sources.py
    out: str  # the adapter's folder
    name: Annotated[str | None, _said("BASE's name in the model card.")] = None
    dimensions: tuple[str, ...] = ()  # of the data's; () is all of them
    fork_layer: Annotated[
        int | None,
        _said(
            "First layer with LoRA; BASE's number of layers is heads alone (default: three quarters up; with "
            "--teacher heads alone)."
        ),
    ] = None
    lora_rank: Annotated[int, _whole(1, "Of the trunk's LoRA.")] = 16
    head_rank: Annotated[int, _whole(1, "Of the preference heads.")] = 16
    dtype: Annotated[str, _said("float32 or bfloat16, of the frozen backbone.")] = "float32"
    max_prompt: Annotated[int, _whole(1, "Tokens; longer prompts are left out, and counted.")] = 256
    max_response: Annotated[int, _whole(2, "Tokens; longer responses are cut, and counted.")] = 128
    validation: Annotated[float, _said("Share of the prompts for early stopping.")] = 0.1
    held_out: Annotated[float, _said("Share of the prompts for the figures of the card.")] = 0.1
    limit: Annotated[int | None, _whole(1, "Records of each source.")] = None
    strict: Annotated[bool, _said("A malformed record ends the run.")] = False
    prompted: Annotated[
        bool, _said("Of pairs: held-out figures of the base that is told the preference; minutes.")
    ] = True
    text_preferences: Annotated[
        int, _whole(0, "Copies of each prompt with a preference in words; for the resident engine.")
    ] = 0
    cached: Annotated[bool, _said("Keep fork activations on disk.")] = True
    beta: Annotated[float, _said("The adapter's default strength.")] = 1.0
    top_k: Annotated[int, _said("Its default candidates.")] = 20
    no_repeat: Annotated[
        int, _whole(0, "Its default guard against loops: length of n-grams, 2 to 8; 0 is off.")
    ] = 0
    min_p: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Its default guard against unlikely tokens: share of the best's probability below "
            "which a candidate earns no more than the average; 0 is off.",
        ),
    ] = 0.0
    chat_template: str | None = None  # text; None is the base's own
    teacher: DistillationSettings | None = None  # in the place of data and dimensions
    by_credit: bool = (
        False  # one closed-form step from the data (training/credit), not a loop over pairs
    )
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

    @property
    def heads_only_by_default(self) -> bool:
        """Whether a run trains heads without a trunk where no fork layer is named."""
        return self.teacher is not None or self.by_credit

    def without_branches(self) -> Settings:
        """The same for a teacher that does not compare next tokens: none are scored."""
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, branch_share=0.0))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """The inverse of `as_dict`."""
        lists = {"data", "dimensions"}
        plain: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in values.items()}
        teacher = values.get("teacher") and DistillationSettings(**values["teacher"])
        return cls(**{**plain, "teacher": teacher, "recipe": Recipe(**values["recipe"])})

    def digest(self) -> str:
        """Identifies the run: checkpoints of another digest are refused. Without what changes no weight."""
        values = {k: v for k, v in self.as_dict().items() if k not in CHANGEABLE_SETTINGS}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
