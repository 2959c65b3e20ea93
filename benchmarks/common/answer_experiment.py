"""What a script needs to have an adapter's answers drawn and judged: adapter, prompts, judges, answer cache.

In: arguments of `add_judging_options`. Out: an AnswerExperiment. By default answers are drawn in float32, in
which vLLM's losses are the base's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common.answer_cache import AnswerCache
from benchmarks.common.arguments import command_line
from benchmarks.common.independent_judges import IndependentJudges
from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.steering.comparison_conditions import (
    Condition,
    instructed_conditions,
    instructions_of,
    unguided_condition,
)
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
)
from pad_vllm.steering.training_record import require_separate_prompts
from pad_vllm.training.sampling.sample_responses import read_prompts


@dataclass(frozen=True)
class AnswerExperiment:
    """One adapter over one base, the prompts that are answered, and the judges of the answers."""

    base: str
    """By any of its names."""

    adapter_folder: str
    adapter: Adapter
    dimensions: tuple[str, ...]
    """Those of --dimensions, or all of the adapter's."""

    prompts: Conversations
    decoding: DecodingSettings
    cache: AnswerCache
    judges: IndependentJudges
    judge_prompts: Conversations
    """Other prompts, which the judges were fitted on."""

    unguided_judge_answers: list[DrawnAnswer]
    """The base's answers to `judge_prompts`."""

    @property
    def config(self) -> AdapterConfig:
        """Of the adapter."""
        return self.adapter.config

    def require_heads_only(self) -> None:
        """Raises SystemExit for an adapter with a trunk."""
        if not self.config.heads_only:
            raise SystemExit(f"--adapter {self.adapter_folder}: heads only are accepted")

    @classmethod
    def from_arguments(cls, args: argparse.Namespace) -> AnswerExperiment:
        """Draws the answers that the judges are fitted on.

        Raises SystemExit for a dimension that the adapter does not have, or that has no judge, and for
        prompts that are also the judges' or the adapter's.
        """
        folder = resolve_adapter(args.adapter)
        adapter = load_adapter(folder)
        config = adapter.config
        dimensions = _requested_dimensions(args.dimensions, config)
        decoding = DecodingSettings(
            args.temperature,
            args.tokens,
            config.top_k,
            dtype=args.dtype,
            chat_template=config.chat_template,
        )
        cache = AnswerCache(args.kept or args.out.with_suffix(".answers.jsonl"))
        judge_prompts, prompts = read_prompts(args.judge_prompts), read_prompts(args.prompts)
        try:
            require_separate_prompts({str(args.adapter): config}, prompts, judge_prompts)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        conditions = [unguided_condition(), *instructed_conditions(instructions_of(config))]
        (answers,) = cache.draw(AnswerBatch(args.base, None, judge_prompts, conditions, [decoding]))
        judges = IndependentJudges.from_answers(config, answers)
        _require_judges(judges, dimensions)
        return cls(
            base=args.base,
            adapter_folder=folder,
            adapter=adapter,
            dimensions=dimensions,
            prompts=prompts,
            decoding=decoding,
            cache=cache,
            judges=judges,
            judge_prompts=judge_prompts,
            unguided_judge_answers=answers[0],
        )

    def draw(
        self,
        conditions: Sequence[Condition],
        adapter_folder: str | None = None,
        base: str | None = None,
    ) -> list[list[DrawnAnswer]]:
        """Answers to `prompts`, from the cache or drawn.

        Args:
            conditions: The ways in which every prompt is answered.
            adapter_folder: Another adapter in the place of this experiment's.
            base: Another base in the place of this experiment's.

        Returns:
            [condition][prompt].
        """
        folder = self.adapter_folder if adapter_folder is None else adapter_folder
        batch = AnswerBatch(base or self.base, folder, self.prompts, conditions, [self.decoding])
        return self.cache.draw(batch)[0]

    def result_entries(self) -> Mapping[str, Any]:
        """What every result says of its experiment."""
        return {
            "command": command_line(),
            "prompts": len(self.prompts),
            "temperature": self.decoding.temperature,
            "tokens": self.decoding.tokens,
            "judges": self.judges.accuracies,
        }


def _requested_dimensions(
    requested: Sequence[str] | None, config: AdapterConfig
) -> tuple[str, ...]:
    names = tuple(requested or config.dimensions)
    for name in names:
        if name not in config.dimensions:
            raise SystemExit(f"--dimensions {name}: accepted are {', '.join(config.dimensions)}")
    return names


def _require_judges(judges: IndependentJudges, dimensions: Sequence[str]) -> None:
    for name in dimensions:
        if not judges.judge_names(name):
            raise SystemExit(
                f"{name} has no judge that trained nothing; accepted: dimensions that an instruction "
                "trained, or that have more than one scorer. Name others: --dimensions"
            )
