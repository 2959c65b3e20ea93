"""Drawn answers that decide an adapter's dose: all dimensions and learned prefixes at a grid's strengths.

In: an adapter's folder, its base, validation prompts, points to try. Out: a DoseRow for each point and for
each dimension asked for in the prompt, whose costs are the limits. dose.py chooses.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.evaluation.win_rates_and_fluency import mean_repeated, perplexity
from pad_vllm.steering.answer_file import read_or_draw
from pad_vllm.steering.comparison_conditions import (
    Condition,
    instructed_conditions,
    instructions_of,
    unguided_condition,
)
from pad_vllm.steering.dimension_judges import DimensionJudges
from pad_vllm.steering.dose import HEADS, PREFIX, TOLD, DoseRow, fits
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
)
from pad_vllm.steering.way import AnswerReading, way_and_interval

TriedPoint = tuple[DoseRow, Condition]
"""The fields of its row that say which point it is, "dimension", "kind", "beta" and "min_p" at least, and how
the prompts are answered there.
"""


@dataclass(frozen=True)
class DoseGrid:
    """What `pad-vllm dose` tries."""

    heads: Sequence[tuple[float, float]]
    """(Strength of each dimension's head, guard)."""

    prefix_betas: Sequence[float]
    """Strengths of each learned prefix."""

    def points(self, config: AdapterConfig) -> list[TriedPoint]:
        """Of each dimension that has an instruction, and of its learned prefix."""
        names = list(instructions_of(config))
        points: list[TriedPoint] = []
        for name, (beta, min_p) in itertools.product(names, self.heads):
            label = f"{HEADS} {name} {beta:g} {min_p:g}"
            condition = Condition(label, {name: 1.0}, beta, request_arguments={"pad_min_p": min_p})
            row = {"dimension": name, "kind": HEADS, "beta": beta, "min_p": min_p}
            points.append((row, condition))
        learned = () if config.prefixes is None else config.prefixes.digests
        prefixes = [name for name in names if name in learned]
        for name, beta in itertools.product(prefixes, self.prefix_betas):
            asked = {"pad_preference": name, "pad_beta": beta}
            condition = Condition(f"{PREFIX} {name} {beta:g}", request_arguments=asked)
            row = {"dimension": name, "kind": PREFIX, "beta": beta, "min_p": 0.0}
            points.append((row, condition))
        return points


class DoseTrial:
    """The answers that decide a dose.

    Args:
        base: The adapter's backbone.
        adapter: Its folder; at least one dimension was trained from an instruction.
        prompts: Others than those that the adapter was trained and will be evaluated on.
        points: What is tried.
        decoding: How answers are drawn.

    Raises:
        ValueError: No dimension has an instruction, or the adapter's default beta is 0.
    """

    def __init__(
        self,
        base: str,
        adapter: str,
        prompts: Conversations,
        points: Sequence[TriedPoint],
        decoding: DecodingSettings,
    ) -> None:
        config = read_config(adapter)
        self.instructions = instructions_of(config)
        if not self.instructions:
            raise ValueError(
                f"{adapter}: none of {', '.join(config.dimensions)} was trained from an instruction, and a "
                "dose is measured against asking for a dimension in the prompt. Look for a strength by "
                "`pad-vllm steer` with several --beta."
            )
        if not config.beta:
            raise ValueError(f"{adapter}: its default beta is 0, which no scale makes a strength")
        self.prompts = prompts
        self.points = points
        conditions = [
            unguided_condition(),
            *instructed_conditions(self.instructions),
            *(condition for _, condition in self.points),
        ]
        settings = {"instructions": True} if config.prefixes else {}
        self.batch = AnswerBatch(base, adapter, prompts, conditions, [decoding], settings)

    def answers(
        self, answer_file: Path | None, print_line: Callable[[str], None]
    ) -> list[list[DrawnAnswer]]:
        """[condition][prompt], from the file if it has them. The arguments are `read_or_draw`'s."""
        (answers,) = read_or_draw([self.batch], answer_file, print_line)
        return answers

    def rows(
        self, answers: Sequence[Sequence[DrawnAnswer]], judges: DimensionJudges
    ) -> list[DoseRow]:
        """A row for each instruction and point of the grid.

        Args:
            answers: Of `answers`.
            judges: With the base.
        """
        plain, *others = answers
        measures = {
            name: _Measures(judges, self.prompts, instruction, plain, told)
            for (name, instruction), told in zip(self.instructions.items(), others, strict=False)
        }
        asked = {"kind": TOLD, "beta": 0.0, "min_p": 0.0}
        limits = {n: {"dimension": n, **asked, **m.told()} for n, m in measures.items()}
        rows = list(limits.values())
        for (point, _), guided in zip(self.points, others[len(measures) :], strict=True):
            name = point["dimension"]
            row = {**point, **measures[name].guided(guided)}
            rows.append({**row, "fits": fits(row, limits[name], len(self.prompts))})
        return rows


class _Measures:
    """Measures answers of one dimension against the plain and the told ones."""

    def __init__(
        self,
        judges: DimensionJudges,
        prompts: Conversations,
        instruction: str,
        plain: Sequence[DrawnAnswer],
        told: Sequence[DrawnAnswer],
    ) -> None:
        self._judges, self._prompts, self._instruction = judges, prompts, instruction
        self._plain, self._told = self._read(plain), self._read(told, instruction)
        self._plain_repeated, self._told_repeated = _repeated(plain), _repeated(told)

    def told(self) -> DoseRow:
        return self._record(self._told, self._told_repeated)

    def guided(self, answers: Sequence[DrawnAnswer]) -> DoseRow:
        return self._record(self._read(answers), _repeated(answers))

    def _record(self, reading: AnswerReading, repeated: float) -> DoseRow:
        return {
            "way": way_and_interval(self._plain, self._told, reading),
            "perplexity": round(perplexity(reading.plain) / perplexity(self._plain.plain), 3),
            "repeated": round(repeated, 4),
            "plain_repeated": round(self._plain_repeated, 4),
            "derailed": round(reading.derailed(), 4),
        }

    def _read(self, answers: Sequence[DrawnAnswer], drawn_with: str = "") -> AnswerReading:
        judges, prompts = self._judges, self._prompts
        return AnswerReading(
            judges.losses(prompts, answers, drawn_with),
            judges.losses(prompts, answers, drawn_with, self._instruction),
        )


def _repeated(answers: Sequence[DrawnAnswer]) -> float:
    return mean_repeated([answer.text for answer in answers])
