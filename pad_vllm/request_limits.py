"""What requests to an adapter may ask for on this engine, and what they get where they ask for nothing.

In: an adapter's config and the engine's settings, from serving/start. Out: RequestLimits, which params.py
reads a request by. It imports neither torch nor vLLM.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pad_vllm.argument_names import ADAPTER
from pad_vllm.instruction import LearnedInstruction
from pad_vllm.merged_lora import MergedLoRA
from pad_vllm.wording import listed, refusal


@dataclass(frozen=True)
class InstructionDefaults:
    """What guides a request with `pad_preference` on a server with instructions, unless it says otherwise.

    An adapter's own defaults were chosen for its heads, whose rewards are known less well.
    """

    beta: float = 2.0
    top_k: int = 20
    no_repeat: int = 3
    min_p: float = 0.03
    loop_price: float = 0.0

    def of_learned_prefix(self, name: str, limits: "RequestLimits") -> "InstructionDefaults":
        """Those of a request that names a learned prefix of that adapter and no weights.

        Its rewards are known better: at an answer's first token nearly all of what the instructed base would
        say (benchmarks/README.md). So no candidate is too unlikely for them.
        """
        return replace(
            self,
            beta=limits.prefix_betas.get(name, min(self.beta, LEARNED_PREFIX_BETA)),
            min_p=0.0,
            loop_price=limits.loop_price,
        )


LEARNED_PREFIX_BETA = 1.5
"""Default strength of a learned prefix that brings none."""


@dataclass(frozen=True)
class RequestLimits:
    """What requests to one adapter of this engine may ask for, and the defaults of what they leave out.

    Raises ValueError where the defaults break the limits, so that an engine which would refuse its own
    defaults never starts.
    """

    dimensions: tuple[str, ...]
    """Names of the preference dimensions, in the adapter's order."""

    beta: float
    """The adapter's default strength."""

    top_k: int
    """The adapter's default number of candidates."""

    max_beta: float
    """Largest |pad_beta|."""

    max_top_k: int
    """Largest pad_top_k."""

    no_repeat: int = 0
    """The adapter's default of the no-repeat guard, an n-gram's length; 0 is off."""

    min_p: float = 0.0
    """The adapter's default of the min-p guard, a share of the best candidate's probability; 0 is off."""

    loop_price: float = 0.0
    """The adapter's default price of a loop, in logits, of its heads and learned prefixes; 0 is off."""

    engine: str = "shared"
    """The reward engine that serves."""

    instructions: InstructionDefaults | None = None
    """The defaults of a request with `pad_preference` on `shared`; None where it takes none."""

    first_dimension: int = 0
    """Index of this adapter's first dimension among the dimensions of all adapters that are served."""

    prefixes: Mapping[str, LearnedInstruction] = field(default_factory=dict)
    """The adapter's learned prefixes, by the name that a request gives as `pad_preference`."""

    prefix_betas: Mapping[str, float] = field(default_factory=dict)
    """Default strengths of those that bring one."""

    sentences: Mapping[str, str] = field(default_factory=dict)
    """Dimension -> the instruction that taught it, for those that the adapter's record has one of."""

    merged_lora: MergedLoRA | None = None
    """The LoRA that the adapter's training had merged into the base, if any: on a server with LoRAs guided
    requests must be under it.
    """

    worker_key: str | None = None
    """The name by which the workers know the adapter; None where it is the one that a client gives."""

    other_adapters: Mapping[str, "RequestLimits"] = field(default_factory=dict)
    """The limits of the other adapters, by the name that a request gives."""

    def __post_init__(self) -> None:
        strongest = max(map(abs, (self.beta, *self.prefix_betas.values())))
        for name, default, limit in (
            ("beta", strongest, self.max_beta),
            ("top_k", self.top_k, self.max_top_k),
        ):
            if default > limit:
                raise ValueError(
                    f"the adapter's default {name} is {default:g}, and this engine accepts at "
                    f"most {limit:g}. Raise max_{name} in additional_config['pad'], or lower "
                    f"{name} in pad_config.json."
                )

    @property
    def worker_arguments(self) -> dict[str, str]:
        """Request arguments that replace the client's on the way to the workers: the adapter's worker_key."""
        return {} if self.worker_key is None else {ADAPTER: self.worker_key}

    def for_adapter(self, name: str | None) -> "RequestLimits":
        """The limits of the adapter that a request names; name: None for a request that names none.

        Raises ValueError where no adapter has this name.
        """
        if name is None:
            return self
        if name not in self.other_adapters:
            others = self.other_adapters
            raise refusal(
                ADAPTER,
                name,
                listed(others) if others else "nothing, one adapter is served",
                "leave it out for the server's own",
            )
        return self.other_adapters[name]
