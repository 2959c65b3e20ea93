"""One vLLM engine that draws responses: a batch of prompts in, lines for two files out.

Called in this process or inside a Ray actor, hence plain strings in and out. Sampling keeps the base's
own top-k, so that every token lies in the candidate set that decoding rescores. Knows nothing of
files, scores or rewards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError

from pad_vllm.text.chat_template import chat_token_ids, with_chat_template
from pad_vllm.training.data.jsonl import record_to_line
from pad_vllm.training.data.preference_record import PreferenceRecord, Response

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class SamplingOptions:
    """How responses are drawn."""

    n: int = 4  # a prompt
    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 20  # the candidates of decoding: a token outside them could never be rewarded
    seed: int = 0  # the engine's: a generator for each request would halve the speed of sampling
    max_model_len: int = 1024
    max_num_seqs: int = 128
    chat_template: str | None = None  # None is the base's own
    dtype: str = "auto"  # vLLM's; a CPU without bfloat16 is ten times slower in it
    enforce_eager: bool = (
        False  # compiling takes minutes, which some hundred answers do not give back
    )
    adapter: str | None = None  # a folder, for an engine that can guide

    def __post_init__(self) -> None:
        if self.max_tokens >= self.max_model_len:
            raise ValueError(
                f"max_tokens {self.max_tokens} of max_model_len {self.max_model_len} leave no room for "
                "a prompt. Lower --max-tokens, or raise --max-model-len"
            )


@dataclass(frozen=True)
class ChatResult:
    """What an engine that asks another one says to one conversation."""

    outputs: list[Any]


class ChatEngine(Protocol):
    """What is used of vllm.LLM."""

    def chat(
        self,
        messages: list[Messages],
        sampling_params: Any,
        *,
        use_tqdm: bool,
        chat_template: str | None,
    ) -> Any:
        """One result a conversation; its outputs have text and token_ids, and guided_by where they were."""

    def get_tokenizer(self) -> Any:
        """The base's."""


EngineBuilder = Callable[[str, SamplingOptions], tuple[ChatEngine, Any]]
"""From base and Sampling to an engine and the parameters its chat takes."""


def build_vllm_engine(base: str, sampling: SamplingOptions) -> tuple[ChatEngine, Any]:
    """vLLM in this process."""
    from pad_vllm.serving.launch import offline_engine

    llm = {
        "max_model_len": sampling.max_model_len,
        "max_num_seqs": sampling.max_num_seqs,
        "seed": sampling.seed,
        "dtype": sampling.dtype,
        "enforce_eager": sampling.enforce_eager,
    }
    params = offline_engine.sampling_params(
        n=sampling.n,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
    )
    return offline_engine.offline_llm(base, llm, sampling.adapter), params


class ResponseSampler:
    """Draws for {"prompt": [messages as JSON]}; answers {"line": [...], "declined": [...]}.

    A line is a Record, or, where declined is true, {"prompt": messages, "declined": reason}.
    """

    def __init__(
        self, base: str, sampling: SamplingOptions, build: EngineBuilder = build_vllm_engine
    ) -> None:
        self.sampling = sampling
        self.engine, self.params = build(base, sampling)
        self.tokenizer = with_chat_template(
            self.engine.get_tokenizer(), base, sampling.chat_template
        )

    def __call__(self, batch: dict[str, Sequence[str]]) -> dict[str, list[Any]]:
        prompts = [json.loads(prompt) for prompt in batch["prompt"]]
        reasons = [self._unfit(prompt) for prompt in prompts]
        fit = [prompt for prompt, reason in zip(prompts, reasons, strict=True) if not reason]
        # vLLM raises on a prompt that is too long, which would fail the whole batch.
        results = iter(self._drawn(fit) if fit else ())
        lines, declined = [], []
        for prompt, reason in zip(prompts, reasons, strict=True):
            responses = [] if reason else _responses(next(results))
            why = reason or _too_few(responses)
            declined.append(bool(why))
            if why:
                lines.append(json.dumps({"prompt": prompt, "declined": why}, ensure_ascii=False))
            else:
                lines.append(record_to_line(PreferenceRecord(prompt=prompt, responses=responses)))
        return {"line": lines, "declined": declined}

    def _drawn(self, prompts: list[Messages]) -> Any:
        template = self.sampling.chat_template
        return self.engine.chat(prompts, self.params, use_tqdm=False, chat_template=template)

    def _unfit(self, prompt: Messages) -> str:
        """Why the engine could not take a prompt; empty where it can."""
        try:
            count = len(chat_token_ids(self.tokenizer, prompt))
        except TemplateError as error:  # such as a system turn for a model that knows none
            return f"the chat template refuses it: {error}"
        room = self.sampling.max_model_len - self.sampling.max_tokens
        return f"{count} tokens, there is room for {room}" if count > room else ""


def _responses(result: Any) -> list[Response]:
    """The different texts that are not blank, each with the tokens it was first drawn with."""
    drawn: dict[str, Response] = {}
    for choice in result.outputs:
        if choice.text.strip() and choice.text not in drawn:
            drawn[choice.text] = Response(
                text=choice.text,
                token_ids=list(choice.token_ids),
                guided_by=getattr(choice, "guided_by", {}),
            )
    return list(drawn.values())


def _too_few(responses: list[Response]) -> str:
    return "" if len(responses) > 1 else f"only {len(responses)} different response(s), not blank"
