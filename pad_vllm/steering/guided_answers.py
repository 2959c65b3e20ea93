"""Draws answers from vLLM under many conditions in one mixed batch, as a server would answer its users.

In: a base, an adapter's folder, prompts, Conditions. Out: a DrawnAnswer for each prompt, by condition. Every
engine runs in a subprocess, so that its memory is free for the models that judge the answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pad_vllm.evaluation.win_rates_and_fluency import START_TOKENS, AnswerLoss
from pad_vllm.serving.launch import offline_engine
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.text.conversation import Conversation
from pad_vllm.text.preference_text import with_instruction

Conversations = Sequence[Conversation]
"""Prompts, as training/sampling/sample_responses.py reads them."""


@dataclass(frozen=True)
class DrawnAnswer:
    """An answer that an engine drew."""

    text: str
    token_ids: tuple[int, ...]
    """The tokens as they were sampled."""

    loss: float | None = None
    """Summed negative log-likelihood, in nats, under the unguided base with the same prompt, instruction
    included; None: not known.
    """

    start: float = 0.0
    """AnswerLoss.start under the same base and prompt, where the loss is known."""

    def to_json(self) -> list[Any]:
        """What `from_json` reads."""
        return [self.text, self.token_ids, self.loss, self.start]

    @classmethod
    def from_json(cls, fields: Sequence[Any]) -> DrawnAnswer:
        """The first fields; those left out are the defaults."""
        text, token_ids, *rest = fields
        return cls(text, tuple(token_ids), *rest)


def known_losses(answers: Sequence[DrawnAnswer]) -> list[AnswerLoss]:
    """Of the answers that have a loss."""
    return [
        AnswerLoss(answer.loss, len(answer.token_ids), answer.start)
        for answer in answers
        if answer.loss is not None
    ]


@dataclass(frozen=True)
class DecodingSettings:
    """How answers are drawn."""

    temperature: float = 0.0
    tokens: int = 100
    """Most tokens of an answer."""

    top_k: int = 20
    """Tokens are sampled from the base's `top_k` most likely ones, guided or not."""

    seed: int = 0
    dtype: str = "auto"
    """Of the engine, as vLLM takes it; judges read with the base in the same."""

    chat_template: str | None = None
    """Text of a Jinja template; None: the base's own."""


def condition_messages(prompt: Conversation, condition: Condition) -> list[dict[str, str]]:
    """The messages of `prompt`, with the condition's instruction after the user's turn."""
    messages = prompt.messages()
    if not condition.instruction:
        return messages
    return with_instruction(messages, condition.instruction)


@dataclass(frozen=True)
class AnswerBatch:
    """All requests to one engine: every prompt under every condition, with each of the decodings."""

    base: str
    adapter: str | None
    """Folder; None where no condition is guided."""

    prompts: Conversations
    conditions: Sequence[Condition]
    decodings: Sequence[DecodingSettings]
    engine_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings in additional_config['pad'] in addition to the adapter."""

    @property
    def num_answers(self) -> int:
        """How many the engine draws."""
        return len(self.prompts) * len(self.conditions) * len(self.decodings)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON of all that decides the answers, for files of answers, whose keys do not change."""
        return {
            "base": self.base,
            "adapter": self.adapter,
            "prompts": [prompt.to_json() for prompt in self.prompts],
            "conditions": [condition.as_json() for condition in self.conditions],
            "decodings": [asdict(decoding) for decoding in self.decodings],
            "settings": dict(self.engine_settings),
        }


def draw_answers(batch: AnswerBatch) -> list[list[list[DrawnAnswer]]]:
    """The batch's answers, indexed [decoding][condition][prompt]. Starts an engine in a subprocess."""
    return offline_engine.run_in_subprocess(_draw_answers, batch)


def _draw_answers(batch: AnswerBatch) -> list[list[list[DrawnAnswer]]]:
    llm = offline_engine.offline_llm(
        batch.base,
        _engine_arguments(batch),
        adapter=batch.adapter,
        settings=batch.engine_settings,
    )
    conditions, num_prompts = batch.conditions, len(batch.prompts)
    conversations = [
        condition_messages(p, condition) for condition in conditions for p in batch.prompts
    ]
    by_decoding = []
    for decoding in batch.decodings:
        params = [_sampling_params(decoding, c) for c in conditions for _ in batch.prompts]
        outputs = llm.chat(conversations, params, chat_template=decoding.chat_template)
        answers = [_answer(output.outputs[0]) for output in outputs]
        starts = range(0, len(answers), num_prompts)
        by_decoding.append([answers[start : start + num_prompts] for start in starts])
    return by_decoding


def _answer(completion: Any) -> DrawnAnswer:
    text, ids = completion.text, tuple(completion.token_ids)
    first = zip(ids, completion.logprobs[:START_TOKENS], strict=False)
    gaps = [known[i].logprob - max(one.logprob for one in known.values()) for i, known in first]
    return DrawnAnswer(text, ids, -float(completion.cumulative_logprob), min(gaps, default=0.0))


def _engine_arguments(batch: AnswerBatch) -> dict[str, Any]:
    # A token has at least one byte. The chat template adds some tokens.
    prompt_bytes = max(len(prompt.to_json().encode()) for prompt in batch.prompts)
    instruction_bytes = max(len(condition.instruction.encode()) for condition in batch.conditions)
    answer_tokens = max(decoding.tokens for decoding in batch.decodings)
    first = batch.decodings[0]
    return {
        "max_model_len": prompt_bytes + instruction_bytes + answer_tokens + 128,
        "max_num_seqs": 64,
        # Many conditions share the same short prompts: with small blocks few tokens are computed twice.
        "block_size": 32,
        "seed": first.seed,
        "dtype": first.dtype,
        "logprobs_mode": "raw_logprobs",  # of the logits before any logits processor: the base's
        "enforce_eager": True,  # an engine draws a few thousand answers: compilation costs more than it saves
    }


def _sampling_params(decoding: DecodingSettings, condition: Condition) -> Any:
    return offline_engine.sampling_params(
        temperature=decoding.temperature,
        top_k=decoding.top_k if decoding.temperature else 0,
        max_tokens=decoding.tokens,
        logprobs=1,  # of the sampled token and of the most likely one
        extra_args=condition.extra_args(),
    )
