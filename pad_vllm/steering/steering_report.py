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
from pad_vllm.steering.guided_answers import Answer, Batch, Decoding, Prompts, answers
from pad_vllm.steering.steering_metrics import Figures, table
from pad_vllm.text.chat_template import chat_tokenizer

Say = Callable[[str], None]
_KEPT = 2  # version of the file of answers


@dataclass(frozen=True)
class Steering:
    """What is asked of `measure`."""

    base: str
    adapter: str  # folder
    prompts: Prompts
    judge_prompts: Prompts = ()  # none: no judges of meaning
    beside: Mapping[str, str] = field(default_factory=dict)  # name -> folder of another adapter
    betas: Sequence[float] = ()  # none: the adapter's own
    beside_betas: Sequence[float] = ()
    decodings: Sequence[Decoding] = (Decoding(), Decoding(temperature=0.7))
    mixes: bool = True  # every two dimensions at once
    on_top: bool = True  # guidance beside plain prompting
    teacher: bool = True  # the told base judges too
    told: Mapping[str, str] = field(default_factory=dict)  # of dimensions that no sentence taught
    engine: str = "shared"
    chat_template: str | None = None  # of the base; None: what the adapter says

    @property
    def settings(self) -> dict[str, str]:
        """Of the engine that guides. One with a backbone of its own reads the base's prompts."""
        if self.engine == "shared":
            return {}
        template = {} if self.chat_template is None else {"chat_template": self.chat_template}
        return {"engine": self.engine, **template}


def measure(asked: Steering, say: Say, kept: Path | None = None) -> dict[str, Any]:
    """{"judges": accuracies, "decodings": [{..., "records", "table", "texts"}]}.

    kept: a file for the answers, which the same question asked again reads.
    """
    config = read_config(asked.adapter)
    template = config.chat_template if asked.chat_template is None else asked.chat_template
    drawn = tuple(replace(d, chat_template=template) for d in asked.decodings)
    asked = replace(asked, decodings=drawn)
    sentences = comparison_conditions.sentences_of(config, asked.told)
    by_adapter = conditions_of(asked, config, sentences)
    said = _drawn(asked, by_adapter, kept)
    rows = [condition for some in by_adapter.values() for condition in some]
    leanings = {}
    if asked.judge_prompts and sentences:
        say(f"judges of meaning, from {len(asked.judge_prompts)} other prompts")
        sampled = Decoding(0.7, dtype=drawn[0].dtype, chat_template=template)
        leanings = dimension_judges.fit(asked.base, sentences, asked.judge_prompts, sampled)
        for name, one in leanings.items():
            say(
                f"{name}: the judge of meaning is right on {one.accuracy:.0%} of its held-out pairs"
            )
    judging = sentences if asked.teacher else {}
    figures = Figures(_judges(asked.base, template, judging, leanings), asked.prompts)
    results = []
    for decoding, answered in zip(asked.decodings, said, strict=True):
        records = figures.records(rows, answered)
        lines = table(records)
        say(f"temperature {decoding.temperature:g}, {decoding.tokens} tokens")
        for line in lines:
            say(line)
        texts = {_key(c): [a.text for a in row] for c, row in zip(rows, answered, strict=True)}
        results.append({**asdict(decoding), "records": records, "table": lines, "texts": texts})
    right = dimension_judges.accuracies(leanings)
    return {"prompts": len(asked.prompts), "judges": right, "decodings": results}


def conditions_of(
    asked: Steering, config: AdapterConfig, sentences: Mapping[str, str]
) -> dict[str, list[Condition]]:
    """By the folder of the adapter that guides."""
    betas, names = asked.betas or [config.beta], config.dimensions
    rows = {
        asked.adapter: [
            comparison_conditions.unguided(),
            *comparison_conditions.told(sentences),
            *comparison_conditions.guided("PAD", names, betas),
            *(_on_top(sentences, betas[0]) if asked.on_top else ()),
            *(comparison_conditions.mixes("PAD", names, betas[0]) if asked.mixes else ()),
        ]
    }
    for name, folder in asked.beside.items():
        other = read_config(folder)
        shared = [d for d in other.dimensions if d in names]
        more = comparison_conditions.guided(name, shared, asked.beside_betas or [other.beta], (1,))
        rows[folder] = [*rows.get(folder, ()), *more]
    return rows


def _on_top(sentences: Mapping[str, str], beta: float) -> list[Condition]:
    """The prompt pulls already: half the strength beside the whole."""
    return comparison_conditions.told_and_guided("PAD", sentences, (beta / 2, beta))


def _drawn(
    asked: Steering, rows: Mapping[str, Sequence[Condition]], kept: Path | None
) -> list[list[list[Answer]]]:
    """By decoding and condition, one engine for each adapter."""
    ways = {folder: [asdict(one) for one in some] for folder, some in rows.items()}
    configs = [read_config(folder).to_json() for folder in rows]
    question = json.dumps([_KEPT, asdict(asked), configs, ways])
    if kept is not None and kept.is_file():
        found = json.loads(kept.read_text())
        if found["question"] == question:
            return [
                [[Answer(text, tuple(ids), loss) for text, ids, loss in row] for row in answered]
                for answered in found["answers"]
            ]
    said: list[list[list[Answer]]] = [[] for _ in asked.decodings]
    for folder, some in rows.items():
        batch = Batch(asked.base, folder, asked.prompts, some, asked.decodings, asked.settings)
        more = answers(batch)
        said = [[*before, *after] for before, after in zip(said, more, strict=True)]
    if kept is not None:
        plain = [
            [[(a.text, a.token_ids, a.loss) for a in row] for row in answered] for answered in said
        ]
        kept.write_text(json.dumps({"question": question, "answers": plain}))
    return said


def _judges(
    base: str, template: str | None, sentences: Mapping[str, str], leanings: Mapping[str, Any]
) -> dimension_judges.Judges:
    from transformers import AutoModelForCausalLM

    folder = Path(resolve_base(base))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    tokenizer = chat_tokenizer(folder, base, template)
    return dimension_judges.Judges(model, tokenizer, sentences, leanings)


def _key(condition: Condition) -> str:
    return f"{condition.name} @{condition.beta:g}" if condition.weights else condition.name
