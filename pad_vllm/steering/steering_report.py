"""Measures one adapter's steering, for `pad-vllm steer`: draws answers under all conditions and judges them.

In: an adapter's folder, its base, prompts that it was not trained on, other prompts that judges of meaning
are fitted on. Out: records and a table per decoding, the judges' accuracies, and every answer as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.evaluation.instruction_classifier import InstructionClassifier
from pad_vllm.params import LEARNED_PREFIX_BETA
from pad_vllm.steering import comparison_conditions, dimension_judges
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
    draw_answers,
)
from pad_vllm.steering.steering_metrics import ConditionMetrics, metrics_table
from pad_vllm.text.chat_template import load_chat_tokenizer

PrintLine = Callable[[str], None]
_ANSWER_FILE_VERSION = 2


@dataclass(frozen=True)
class SteeringSettings:
    """What `measure_steering` measures."""

    base: str
    adapter: str
    """Folder."""

    prompts: Conversations
    """Answered under every condition."""

    judge_prompts: Conversations = ()
    """Answered to fit the judges of meaning; empty: there are none."""

    other_adapters: Mapping[str, str] = field(default_factory=dict)
    """Name -> folder of another adapter that answers the same prompts."""

    betas: Sequence[float] = ()
    """Strengths of the adapter; empty: its default alone."""

    other_betas: Sequence[float] = ()
    """Strengths of each other adapter; empty: its default alone."""

    prefix_betas: Sequence[float] = ()
    """Strengths of the adapter's learned prefixes, if it has any; empty: their default alone."""

    decodings: Sequence[DecodingSettings] = (DecodingSettings(), DecodingSettings(temperature=0.7))
    mixes: bool = True
    """Also guide by every two dimensions at once."""

    on_top: bool = True
    """Also guide prompts that hold the instruction."""

    teacher: bool = True
    """Let the base with the instruction in its prompt judge, too."""

    instructions: Mapping[str, str] = field(default_factory=dict)
    """Dimension -> instruction, for dimensions that the adapter was not trained on by an instruction; it also
    overrides the adapter's own.
    """

    engine: str = "shared"
    """Engine of the reward model, of config.ENGINES."""

    chat_template: str | None = None
    """Text of the base's Jinja template; None: the adapter's, otherwise the base's own."""

    @property
    def engine_settings(self) -> dict[str, Any]:
        """additional_config['pad'] in addition to an adapter without learned prefixes. Engines with a
        backbone of their own need the base's chat template to read its prompts.
        """
        if self.engine == "shared":
            return {}
        template = {} if self.chat_template is None else {"chat_template": self.chat_template}
        return {"engine": self.engine, **template}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON that identifies the settings in files of answers, whose keys do not change."""
        return {
            "base": self.base,
            "adapter": self.adapter,
            "prompts": [prompt.to_json() for prompt in self.prompts],
            "judge_prompts": [prompt.to_json() for prompt in self.judge_prompts],
            "beside": dict(self.other_adapters),
            "betas": list(self.betas),
            "beside_betas": list(self.other_betas),
            "decodings": [asdict(decoding) for decoding in self.decodings],
            "mixes": self.mixes,
            "on_top": self.on_top,
            "teacher": self.teacher,
            "told": dict(self.instructions),
            "engine": self.engine,
            "chat_template": self.chat_template,
        }


def measure_steering(
    settings: SteeringSettings, print_line: PrintLine, answer_file: Path | None = None
) -> dict[str, Any]:
    """Draws answers under all conditions, judges them and prints a table per decoding.

    Args:
        settings: What to measure.
        print_line: Prints one line of the report.
        answer_file: File to store the answers in. A later call with the same settings reads them from it
            instead of drawing.

    Returns:
        {"prompts": their number, "judges": accuracies of the judges of meaning, "decodings": a list of
        {the fields of DecodingSettings, "records", "table", "texts"}}, the content of a result file.

    Raises:
        ValueError: A file cannot be used, or `instructions` names an unknown dimension.
    """
    config = read_config(settings.adapter)
    template = config.chat_template if settings.chat_template is None else settings.chat_template
    decodings = tuple(replace(d, chat_template=template) for d in settings.decodings)
    settings = replace(settings, decodings=decodings)
    instructions = comparison_conditions.instructions_of(config, settings.instructions)
    by_adapter = conditions_by_adapter(settings, config, instructions)
    answers = _stored_or_drawn_answers(settings, by_adapter, answer_file)
    conditions = [condition for group in by_adapter.values() for condition in group]
    classifiers = _fit_classifiers(settings, instructions, print_line)
    judges = _load_judges(
        settings.base,
        template=template,
        instructions=instructions if settings.teacher else {},
        classifiers=classifiers,
    )
    metrics = ConditionMetrics(judges, settings.prompts)
    results = []
    for decoding, answered in zip(decodings, answers, strict=True):
        records = metrics.records(conditions, answered)
        table = metrics_table(records)
        print_line(f"temperature {decoding.temperature:g}, {decoding.tokens} tokens")
        for line in table:
            print_line(line)
        texts = {
            _text_key(condition): [answer.text for answer in row]
            for condition, row in zip(conditions, answered, strict=True)
        }
        results.append({**asdict(decoding), "records": records, "table": table, "texts": texts})
    accuracies = dimension_judges.judge_accuracies(classifiers)
    return {"prompts": len(settings.prompts), "judges": accuracies, "decodings": results}


def conditions_by_adapter(
    settings: SteeringSettings, config: AdapterConfig, instructions: Mapping[str, str]
) -> dict[str, list[Condition]]:
    """All conditions to answer the prompts under.

    Args:
        settings: What to measure.
        config: Config of the adapter that is measured.
        instructions: Dimension -> instruction.

    Returns:
        Folder of the adapter that guides -> conditions. The unguided one comes first.
    """
    betas, names = settings.betas or [config.beta], config.dimensions
    conditions = [
        comparison_conditions.unguided_condition(),
        *comparison_conditions.instructed_conditions(instructions),
        *comparison_conditions.guided_conditions("PAD", names, betas),
    ]
    if settings.on_top:
        # The instruction in the prompt already steers: half the strength is measured, too.
        conditions += comparison_conditions.instructed_and_guided_conditions(
            "PAD", instructions, (betas[0] / 2, betas[0])
        )
    if config.prefixes is not None and settings.engine == "shared":
        prefixes = [name for name in config.prefixes.digests if name in names]
        conditions += comparison_conditions.prefix_conditions(
            prefixes, settings.prefix_betas or [LEARNED_PREFIX_BETA]
        )
    if settings.mixes:
        conditions += comparison_conditions.mixed_conditions("PAD", names, betas[0])
    by_adapter = {settings.adapter: conditions}
    for name, folder in settings.other_adapters.items():
        other = read_config(folder)
        shared = [dimension for dimension in other.dimensions if dimension in names]
        guided = comparison_conditions.guided_conditions(
            name, shared, settings.other_betas or [other.beta], signs=(1,)
        )
        by_adapter[folder] = [*by_adapter.get(folder, ()), *guided]
    return by_adapter


def _stored_or_drawn_answers(
    settings: SteeringSettings,
    by_adapter: Mapping[str, Sequence[Condition]],
    answer_file: Path | None,
) -> list[list[list[DrawnAnswer]]]:
    """[decoding][condition][prompt], from the file if it holds the answers to the same question."""
    question = _question(settings, by_adapter)
    if answer_file is not None and answer_file.is_file():
        stored = json.loads(answer_file.read_text())
        if stored["question"] == question:
            return [
                [[DrawnAnswer(text, tuple(ids), loss) for text, ids, loss in row] for row in rows]
                for rows in stored["answers"]
            ]
    answers = _draw(settings, by_adapter)
    if answer_file is not None:
        plain = [[[(a.text, a.token_ids, a.loss) for a in row] for row in rows] for rows in answers]
        answer_file.write_text(json.dumps({"question": question, "answers": plain}))
    return answers


def _question(settings: SteeringSettings, by_adapter: Mapping[str, Sequence[Condition]]) -> str:
    """All that decides the answers, as JSON text."""
    conditions = {folder: [c.as_json() for c in group] for folder, group in by_adapter.items()}
    configs = [read_config(folder).to_json() for folder in by_adapter]
    return json.dumps([_ANSWER_FILE_VERSION, settings.as_json(), configs, conditions])


def _draw(
    settings: SteeringSettings, by_adapter: Mapping[str, Sequence[Condition]]
) -> list[list[list[DrawnAnswer]]]:
    """[decoding][condition][prompt], by one engine per adapter."""
    answers: list[list[list[DrawnAnswer]]] = [[] for _ in settings.decodings]
    for folder, conditions in by_adapter.items():
        reads_prefixes = any("pad_preference" in c.request_arguments for c in conditions)
        more: dict[str, Any] = {"instructions": True} if reads_prefixes else {}
        batch = AnswerBatch(
            base=settings.base,
            adapter=folder,
            prompts=settings.prompts,
            conditions=conditions,
            decodings=settings.decodings,
            engine_settings={**settings.engine_settings, **more},
        )
        for rows, drawn in zip(answers, draw_answers(batch), strict=True):
            rows.extend(drawn)
    return answers


def _fit_classifiers(
    settings: SteeringSettings, instructions: Mapping[str, str], print_line: PrintLine
) -> dict[str, InstructionClassifier]:
    """Dimension -> judge of meaning; empty without prompts for them."""
    if not settings.judge_prompts or not instructions:
        return {}
    print_line(f"judges of meaning, from {len(settings.judge_prompts)} other prompts")
    first = settings.decodings[0]
    classifiers = dimension_judges.fit_meaning_judges(
        settings.base,
        instructions,
        settings.judge_prompts,
        DecodingSettings(0.7, dtype=first.dtype, chat_template=first.chat_template),
    )
    for name, classifier in classifiers.items():
        right = f"{classifier.accuracy:.0%}"
        print_line(f"{name}: the judge of meaning is right on {right} of its held-out pairs")
    return classifiers


def _load_judges(
    base: str,
    *,
    template: str | None,
    instructions: Mapping[str, str],
    classifiers: Mapping[str, InstructionClassifier],
) -> dimension_judges.DimensionJudges:
    from pad_vllm.persrm import load_causal_lm

    folder = Path(resolve_base(base))
    return dimension_judges.DimensionJudges(
        model=load_causal_lm(folder, dtype="float32").eval(),
        tokenizer=load_chat_tokenizer(folder, base, template),
        instructions=instructions,
        classifiers=classifiers,
    )


def _text_key(condition: Condition) -> str:
    return f"{condition.name} @{condition.beta:g}" if condition.beta else condition.name
