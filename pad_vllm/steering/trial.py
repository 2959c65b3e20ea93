"""A first look at a new adapter: a few everyday questions answered unguided and with each of its dimensions.

In: a base, an adapter's folder. Out: lines to read, a table of what guidance does to the text and three
answers of each dimension. Too few for a judgement: that is `pad-vllm evaluate --steering`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from functools import partial

from pad_vllm.adapter.manifest import read_config
from pad_vllm.evaluation.text_measures import perplexity, repeated_ngram_share
from pad_vllm.steering.comparison_conditions import Condition, guided_conditions, unguided_condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    DecodingSettings,
    DrawnAnswer,
    draw_answers,
    known_losses,
)
from pad_vllm.training.data.conversation import Conversation

QUESTIONS = (
    "How do I make a good cup of tea?",
    "What should I do on a rainy Sunday?",
    "Why is the sky blue?",
    "My train is late again. What can I do?",
    "How can I learn to swim as an adult?",
    "Is it worth growing my own vegetables?",
    "What makes a good boss?",
    "How do planes stay in the air?",
)
_SHOWN = 3
_TOKENS = 60


def trial(base: str, adapter: str, dtype: str) -> list[str]:
    """adapter: folder; dtype: of the engine. Takes about a minute on two cores."""
    config = read_config(adapter)
    conditions = [
        unguided_condition(),
        *guided_conditions("", config.dimensions, [config.beta], (1,)),
    ]
    prompts = [Conversation.model_validate(one) for one in QUESTIONS]
    drawn = DecodingSettings(
        0.7, _TOKENS, config.top_k, dtype=dtype, chat_template=config.chat_template
    )
    (said,) = draw_answers(AnswerBatch(base, adapter, prompts, conditions, [drawn]))
    return [*_table(conditions, said), *_shown(conditions, said)]


def _table(conditions: Sequence[Condition], said: Sequence[Sequence[DrawnAnswer]]) -> list[str]:
    lines = [f"{'':>14} {'repeated':>10} {'perplexity':>10} {'words':>6}"]
    for condition, row in zip(conditions, said, strict=True):
        repeated = sum(repeated_ngram_share(one.text) for one in row) / len(row)
        words = sum(len(one.text.split()) for one in row) / len(row)
        name = condition.name.strip()
        lines.append(f"{name:>14} {repeated:>10.1%} {_perplexity(row):>10} {words:>6.0f}")
    return lines


def _perplexity(row: Sequence[DrawnAnswer]) -> str:
    """Of the base; not known in half precision."""
    known = known_losses(row)
    return f"{perplexity(known):.1f}" if known else "-"


def _shown(conditions: Sequence[Condition], said: Sequence[Sequence[DrawnAnswer]]) -> list[str]:
    fill = partial(textwrap.fill, width=100, subsequent_indent=" " * 16)
    lines = []
    for number, question in enumerate(QUESTIONS[:_SHOWN]):
        lines += ["", question]
        for condition, row in zip(conditions, said, strict=True):
            text = " ".join(row[number].text.split())
            lines.append(fill(f"{condition.name.strip():>14}  {text}"))
    return lines
