"""Answers of vLLM under many conditions, in one mixed batch: what is measured is what users get.

In: a base, an adapter's folder, prompts, Conditions. Out: an Answer for each prompt, by condition. Every
engine runs in a process of its own, so that its memory is free for what reads the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pad_vllm.serving.launch import offline_engine
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.text.preference_text import with_instruction
from pad_vllm.training.data.conversation import Conversation

Conversations = Sequence[Conversation]
"""Prompts, as training/sampling/sample_responses.py reads them."""


@dataclass(frozen=True)
class DrawnAnswer:
    """What the engine said: the text, and the tokens where they were sampled."""

    text: str
    token_ids: tuple[int, ...]
    loss: float | None = None
    """Negative log-likelihood, in nats, under the base that was asked as this answer was; None: not known."""


def known_losses(said: Sequence[DrawnAnswer]) -> list[tuple[float, int]]:
    """(negative log-likelihood, tokens) of those answers that know theirs."""
    return [(one.loss, len(one.token_ids)) for one in said if one.loss is not None]


@dataclass(frozen=True)
class DecodingSettings:
    """How answers are drawn. The candidates are the base's best `top_k`, guided or not."""

    temperature: float = 0.0
    tokens: int = 100
    top_k: int = 20
    seed: int = 0
    dtype: str = "auto"
    chat_template: str | None = None  # None is the base's own


def condition_messages(prompt: Conversation, condition: Condition) -> list[dict[str, str]]:
    """The conversation of a condition."""
    turns = prompt.messages()
    return with_instruction(turns, condition.instruction) if condition.instruction else turns


@dataclass(frozen=True)
class AnswerBatch:
    """What is asked of one engine."""

    base: str
    adapter: str | None  # a folder; None where no condition is guided
    prompts: Conversations
    conditions: Sequence[Condition]
    decodings: Sequence[DecodingSettings]
    engine_settings: Mapping[str, str] = field(default_factory=dict)
    """Of the engine that guides, in additional_config['pad'] beside the adapter."""


def draw_answers(batch: AnswerBatch) -> list[list[list[DrawnAnswer]]]:
    """[decoding][condition][prompt]."""
    return offline_engine.run_in_subprocess(_answers, batch)


def _answers(batch: AnswerBatch) -> list[list[list[DrawnAnswer]]]:
    llm = offline_engine.offline_llm(
        batch.base, _sizes(batch), batch.adapter, batch.engine_settings
    )
    prompts, conditions, size = batch.prompts, batch.conditions, len(batch.prompts)
    chats = [condition_messages(prompt, one) for one in conditions for prompt in prompts]
    found = []
    for decoding in batch.decodings:
        params = [_sampling(decoding, one) for one in conditions for _ in prompts]
        drawn = llm.chat(chats, params, chat_template=decoding.chat_template)
        known = decoding.dtype == "float32"  # in which others compute losses too
        said = [_answer(result.outputs[0], known) for result in drawn]
        found.append([said[start : start + size] for start in range(0, len(said), size)])
    return found


def _answer(said: Any, known: bool) -> DrawnAnswer:
    loss = -float(said.cumulative_logprob) if known else None
    return DrawnAnswer(said.text, tuple(said.token_ids), loss)


def _sizes(batch: AnswerBatch) -> dict[str, Any]:
    # No token is less than a byte; a template puts some around.
    asked = max(len(prompt.to_json().encode()) for prompt in batch.prompts)
    told = max(len(condition.instruction.encode()) for condition in batch.conditions)
    tokens = max(decoding.tokens for decoding in batch.decodings)
    first = batch.decodings[0]
    return {
        "max_model_len": asked + told + tokens + 128,
        "max_num_seqs": 64,
        "block_size": 32,  # the same short prompts under many conditions: few tokens are read twice
        "seed": first.seed,
        "dtype": first.dtype,
        "logprobs_mode": "raw_logprobs",  # of the logits before any processor: the base's
        "enforce_eager": True,  # an engine a few thousand answers: compiling would not pay
    }


def _sampling(decoding: DecodingSettings, condition: Condition) -> Any:
    return offline_engine.sampling_params(
        temperature=decoding.temperature,
        top_k=decoding.top_k if decoding.temperature else 0,
        max_tokens=decoding.tokens,
        logprobs=0,  # of the sampled token alone
        extra_args=condition.extra_args(),
    )
