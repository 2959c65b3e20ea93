"""`pad-vllm evaluate --steering`: everything about one adapter's steering, in a table and a JSON file.

In: an adapter's folder, its base, prompts that it was not trained on, others that judges are fitted on.
Out: records by decoding, the judges' accuracies, every answer for those who read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pad_vllm.adapter.manifest import AdapterConfig, read_config
from pad_vllm.catalog.name_resolution import resolve_base
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
from pad_vllm.training.data.conversation import Conversation

Say = Callable[[str], None]
_KEPT = 2  # version of the file of answers


@dataclass(frozen=True)
class SteeringSettings:
    """What is asked of `measure`."""

    base: str
    adapter: str  # folder
    prompts: Conversations
    judge_prompts: Conversations = ()  # none: no judges of meaning
    other_adapters: Mapping[str, str] = field(
        default_factory=dict
    )  # name -> folder of another adapter
    betas: Sequence[float] = ()  # none: the adapter's own
    other_betas: Sequence[float] = ()
    decodings: Sequence[DecodingSettings] = (DecodingSettings(), DecodingSettings(temperature=0.7))
    mixes: bool = True  # every two dimensions at once
    on_top: bool = True  # guidance beside plain prompting
    teacher: bool = True  # the told base judges too
    instructions: Mapping[str, str] = field(
        default_factory=dict
    )  # of dimensions that no sentence taught
    engine: str = "shared"
    chat_template: str | None = None  # of the base; None: what the adapter says

    @property
    def engine_settings(self) -> dict[str, str]:
        """Of the engine that guides. One with a backbone of its own reads the base's prompts."""
        if self.engine == "shared":
            return {}
        template = {} if self.chat_template is None else {"chat_template": self.chat_template}
        return {"engine": self.engine, **template}


def measure_steering(asked: SteeringSettings, say: Say, kept: Path | None = None) -> dict[str, Any]:
    """{"judges": accuracies, "decodings": [{..., "records", "table", "texts"}]}.

    kept: a file for the answers, which the same question asked again reads.
    """
    config = read_config(asked.adapter)
    template = config.chat_template if asked.chat_template is None else asked.chat_template
    drawn = tuple(replace(d, chat_template=template) for d in asked.decodings)
    asked = replace(asked, decodings=drawn)
    sentences = comparison_conditions.instructions_of(config, asked.instructions)
    by_adapter = conditions_by_adapter(asked, config, sentences)
    said = _drawn(asked, by_adapter, kept)
    rows = [condition for some in by_adapter.values() for condition in some]
    leanings = {}
    if asked.judge_prompts and sentences:
        say(f"judges of meaning, from {len(asked.judge_prompts)} other prompts")
        sampled = DecodingSettings(0.7, dtype=drawn[0].dtype, chat_template=template)
        leanings = dimension_judges.fit_meaning_judges(
            asked.base, sentences, asked.judge_prompts, sampled
        )
        for name, one in leanings.items():
            say(
                f"{name}: the judge of meaning is right on {one.accuracy:.0%} of its held-out pairs"
            )
    judging = sentences if asked.teacher else {}
    figures = ConditionMetrics(_judges(asked.base, template, judging, leanings), asked.prompts)
    results = []
    for decoding, answered in zip(asked.decodings, said, strict=True):
        records = figures.records(rows, answered)
        lines = metrics_table(records)
        say(f"temperature {decoding.temperature:g}, {decoding.tokens} tokens")
        for line in lines:
            say(line)
        texts = {_key(c): [a.text for a in row] for c, row in zip(rows, answered, strict=True)}
        results.append({**asdict(decoding), "records": records, "table": lines, "texts": texts})
    right = dimension_judges.judge_accuracies(leanings)
    return {"prompts": len(asked.prompts), "judges": right, "decodings": results}


def conditions_by_adapter(
    asked: SteeringSettings, config: AdapterConfig, sentences: Mapping[str, str]
) -> dict[str, list[Condition]]:
    """By the folder of the adapter that guides."""
    betas, names = asked.betas or [config.beta], config.dimensions
    rows = {
        asked.adapter: [
            comparison_conditions.unguided_condition(),
            *comparison_conditions.instructed_conditions(sentences),
            *comparison_conditions.guided_conditions("PAD", names, betas),
            *(_on_top(sentences, betas[0]) if asked.on_top else ()),
            *(
                comparison_conditions.mixed_conditions("PAD", names, betas[0])
                if asked.mixes
                else ()
            ),
        ]
    }
    for name, folder in asked.other_adapters.items():
        other = read_config(folder)
        shared = [d for d in other.dimensions if d in names]
        more = comparison_conditions.guided_conditions(
            name, shared, asked.other_betas or [other.beta], (1,)
        )
        rows[folder] = [*rows.get(folder, ()), *more]
    return rows


def _on_top(sentences: Mapping[str, str], beta: float) -> list[Condition]:
    """The prompt pulls already: half the strength beside the whole."""
    return comparison_conditions.instructed_and_guided_conditions(
        "PAD", sentences, (beta / 2, beta)
    )


def _drawn(
    asked: SteeringSettings, rows: Mapping[str, Sequence[Condition]], kept: Path | None
) -> list[list[list[DrawnAnswer]]]:
    """By decoding and condition, one engine for each adapter."""
    ways = {folder: [asdict(one) for one in some] for folder, some in rows.items()}
    configs = [read_config(folder).to_json() for folder in rows]
    question = json.dumps([_KEPT, asdict(asked), configs, ways], default=Conversation.to_json)
    if kept is not None and kept.is_file():
        found = json.loads(kept.read_text())
        if found["question"] == question:
            return [
                [
                    [DrawnAnswer(text, tuple(ids), loss) for text, ids, loss in row]
                    for row in answered
                ]
                for answered in found["answers"]
            ]
    said: list[list[list[DrawnAnswer]]] = [[] for _ in asked.decodings]
    for folder, some in rows.items():
        batch = AnswerBatch(
            asked.base, folder, asked.prompts, some, asked.decodings, asked.engine_settings
        )
        more = draw_answers(batch)
        said = [[*before, *after] for before, after in zip(said, more, strict=True)]
    if kept is not None:
        plain = [
            [[(a.text, a.token_ids, a.loss) for a in row] for row in answered] for answered in said
        ]
        kept.write_text(json.dumps({"question": question, "answers": plain}))
    return said


def _judges(
    base: str, template: str | None, sentences: Mapping[str, str], leanings: Mapping[str, Any]
) -> dimension_judges.DimensionJudges:
    from transformers import AutoModelForCausalLM

    folder = Path(resolve_base(base))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = load_chat_tokenizer(folder, base, template)
    return dimension_judges.DimensionJudges(model, tokenizer, sentences, leanings)


def _key(condition: Condition) -> str:
    return f"{condition.name} @{condition.beta:g}" if condition.weights else condition.name
