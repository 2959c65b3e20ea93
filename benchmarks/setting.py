"""What a script that asks a question of answers works with: adapter, prompts, judges, a file of answers.

In: arguments of `arguments.add_question`. Out: a Setting. Answers are drawn in float32, in which vLLM's
losses are the base's own.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import arguments
from jury import Jury
from kept import Kept

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.catalog.name_resolution import resolve_adapter
from pad_vllm.steering import comparison_conditions
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
)
from pad_vllm.training.sampling.sample_responses import read_prompts


@dataclass(frozen=True)
class Setting:
    """dimensions: those asked about, all of the adapter's where none is named."""

    base: str
    folder: str
    adapter: Adapter
    dimensions: tuple[str, ...]
    prompts: Conversations
    drawn: DecodingSettings
    kept: Kept
    jury: Jury
    others: Conversations  # that the judges were fitted on
    plain: list[DrawnAnswer]  # the base's answers to them

    @property
    def config(self) -> AdapterConfig:
        """The adapter's."""
        return self.adapter.config

    def require_heads(self) -> None:
        """Raises SystemExit for a trunk."""
        if not self.config.heads_only:
            raise SystemExit(f"--adapter {self.folder}: heads alone are accepted")

    @classmethod
    def of(cls, args: argparse.Namespace) -> Setting:
        """Draws what judges are fitted on. Raises SystemExit for dimensions that cannot be asked about."""
        folder = resolve_adapter(args.adapter)
        adapter = load_adapter(folder)
        config = adapter.config
        names = tuple(args.dimensions or config.dimensions)
        for name in names:
            if name not in config.dimensions:
                raise SystemExit(
                    f"--dimensions {name}: accepted are {', '.join(config.dimensions)}"
                )
        drawn = DecodingSettings(
            args.temperature,
            args.tokens,
            config.top_k,
            dtype="float32",
            chat_template=config.chat_template,
        )
        kept = Kept(args.kept or args.out.with_suffix(".answers.jsonl"))
        others, prompts = read_prompts(args.judge_prompts), read_prompts(args.steering)
        asked = [
            comparison_conditions.unguided_condition(),
            *comparison_conditions.instructed_conditions(
                comparison_conditions.instructions_of(config)
            ),
        ]
        (said,) = kept.answers(AnswerBatch(args.base, None, others, asked, [drawn]))
        jury = Jury.of(config, said)
        for name in names:
            if not jury.names(name):
                raise SystemExit(
                    f"{name} has no judge that trained nothing; accepted: dimensions that a sentence taught, "
                    "or that have more than one scorer. Name others: --dimensions"
                )
        return cls(args.base, folder, adapter, names, prompts, drawn, kept, jury, others, said[0])

    def answers(
        self, asked: Sequence[Condition], folder: str | None = None, base: str | None = None
    ) -> list[list[DrawnAnswer]]:
        """[condition][prompt]. folder: of another adapter; base: another one."""
        guides = self.folder if folder is None else folder
        batch = AnswerBatch(base or self.base, guides, self.prompts, asked, [self.drawn])
        return self.kept.answers(batch)[0]

    def about(self) -> Mapping[str, Any]:
        """For the report."""
        return {
            "command": arguments.command(),
            "prompts": len(self.prompts),
            "temperature": self.drawn.temperature,
            "tokens": self.drawn.tokens,
            "judges": self.jury.accuracies,
        }
