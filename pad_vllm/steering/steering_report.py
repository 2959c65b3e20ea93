"""Measures one adapter's steering, for `pad-vllm steer`: draws answers under all conditions and judges them.

In: an adapter's folder, its base, prompts that it was not trained on, other prompts that judges of meaning
are fitted on. Out: records and a table per decoding, the judges' accuracies, and every answer as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.evaluation.instruction_classifier import InstructionClassifier
from pad_vllm.steering import comparison_conditions, dimension_judges
from pad_vllm.steering.answer_file import read_or_draw
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
)
from pad_vllm.steering.steering_metrics import ConditionMetrics, metrics_table
from pad_vllm.steering.training_record import (
    judges_that_taught,
    prompts_are_recorded,
    require_separate_prompts,
)

PrintLine = Callable[[str], None]


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
    """Strengths of the adapter's learned prefixes, if it has any; empty: their defaults alone."""

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
        {"prompts": their number, "judges": accuracies of the judges of meaning, "taught": the judges that
        taught a dimension, which are not independent of it, "decodings": a list of
        {the fields of DecodingSettings, "records", "table", "texts"}}, the content of a result file.

    Raises:
        ValueError: A file cannot be used, `instructions` names an unknown dimension, or prompts are among
            those of the judges or of an adapter's training.
    """
    config = read_config(settings.adapter)
    template = config.chat_template if settings.chat_template is None else settings.chat_template
    decodings = tuple(replace(d, chat_template=template) for d in settings.decodings)
    settings = replace(settings, decodings=decodings)
    instructions = comparison_conditions.instructions_of(config, settings.instructions)
    _require_new_prompts(settings, config, print_line)
    taught = judges_that_taught(config)
    by_adapter = conditions_by_adapter(settings, config, instructions)
    answers = read_or_draw(_batches(settings, by_adapter), answer_file, print_line)
    conditions = [condition for group in by_adapter.values() for condition in group]
    classifiers = _fit_classifiers(settings, instructions, print_line)
    judges = dimension_judges.load_judges(
        settings.base, decodings[0], instructions if settings.teacher else {}, classifiers
    )
    metrics = ConditionMetrics(judges, settings.prompts)
    results = []
    for decoding, answered in zip(decodings, answers, strict=True):
        records = metrics.records(conditions, answered)
        table = metrics_table(records, taught)
        print_line(f"temperature {decoding.temperature:g}, {decoding.tokens} tokens")
        for line in table:
            print_line(line)
        texts = {
            _text_key(condition): [answer.text for answer in row]
            for condition, row in zip(conditions, answered, strict=True)
        }
        results.append({**asdict(decoding), "records": records, "table": table, "texts": texts})
    accuracies = dimension_judges.judge_accuracies(classifiers)
    return {
        "prompts": len(settings.prompts),
        "judges": accuracies,
        "taught": {name: sorted(judges) for name, judges in taught.items() if judges},
        "decodings": results,
    }


def _require_new_prompts(
    settings: SteeringSettings, config: AdapterConfig, print_line: PrintLine
) -> None:
    """Refuse prompts that an adapter was trained on; say where nothing is known of that."""
    others = {name: read_config(folder) for name, folder in settings.other_adapters.items()}
    configs = {settings.adapter: config, **others}
    require_separate_prompts(configs, settings.prompts, settings.judge_prompts)
    for name, one in configs.items():
        if not prompts_are_recorded(one):
            print_line(
                f"{name} does not record which prompts it was trained on: whether these are others was not "
                "checked"
            )


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
        conditions += comparison_conditions.prefix_conditions(
            config.prefixes, names, settings.prefix_betas
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


def _batches(
    settings: SteeringSettings, by_adapter: Mapping[str, Sequence[Condition]]
) -> list[AnswerBatch]:
    """One for the engine of each adapter."""
    batches = []
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
        batches.append(batch)
    return batches


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


def _text_key(condition: Condition) -> str:
    return f"{condition.name} @{condition.beta:g}" if condition.beta else condition.name
