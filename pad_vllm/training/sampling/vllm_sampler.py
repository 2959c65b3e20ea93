"""One vLLM engine that samples responses: a batch of prompts in, lines for two files out.

Called in this process or inside a Ray actor, hence plain strings in and out. Sampling keeps the base's
own top-k, so that every token lies in the candidate set that decoding rescores. Knows nothing of
files, scores or rewards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from jinja2 import TemplateError

from pad_vllm.adapter.backbone.weight_fingerprint import fingerprint, local_checkpoint
from pad_vllm.catalog.name_resolution import resolve_local_base
from pad_vllm.text.chat_template import chat_token_ids, with_chat_template
from pad_vllm.text.conversation import Conversation
from pad_vllm.training.data.jsonl import record_to_line
from pad_vllm.training.data.preference_record import Drawing, PreferenceRecord, Response

Messages = list[dict[str, str]]
"""A conversation as vLLM's `LLM.chat` takes it."""


@dataclass(frozen=True)
class SamplingOptions:
    """How responses are sampled."""

    n: int = 4
    """Responses to each prompt."""

    max_tokens: int = 128
    """Of a response."""

    temperature: float = 0.8
    top_k: int = 20
    """The candidates of decoding: a token outside them could never get a reward."""

    seed: int = 0
    """The engine's: a generator for each request would halve the speed of sampling."""

    max_model_len: int = 1024
    """Tokens of prompt and response together."""

    max_num_seqs: int = 128
    """Responses that the engine samples at once."""

    chat_template: str | None = None
    """A Jinja template; None: the base's own."""

    dtype: str = "auto"
    """vLLM's; a CPU without bfloat16 is ten times slower in it."""

    enforce_eager: bool = False
    """Do not compile: compiling takes minutes, more than it saves in some hundred answers."""

    adapter: str | None = None
    """An adapter's folder, for an engine that can guide."""

    engine_arguments: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's others, such as gpu_memory_utilization; they go before those above."""

    def __post_init__(self) -> None:
        if self.max_tokens >= self.max_model_len:
            raise ValueError(
                f"max_tokens {self.max_tokens} of max_model_len {self.max_model_len} leave no room for "
                "a prompt. Lower --max-tokens, or raise --max-model-len"
            )


@dataclass(frozen=True)
class ChatResult:
    """The outputs for one conversation, as vllm.RequestOutput has them, of an engine that wraps another."""

    outputs: list[Any]


class ChatEngine(Protocol):
    """The part of vllm.LLM that sampling uses."""

    def chat(
        self,
        messages: list[Messages],
        sampling_params: Any,
        *,
        use_tqdm: bool,
        chat_template: str | None,
    ) -> Any:
        """Sample responses.

        Args:
            messages: the conversations.
            sampling_params: what the engine's builder returned.
            use_tqdm: show vLLM's progress bar.
            chat_template: a Jinja template; None: the base's own.

        Returns:
            One result for each conversation, with `outputs`. An output has `text`, `token_ids` and, if it was
            guided, `guided_by`: the request's arguments.
        """

    def get_tokenizer(self) -> Any:
        """The base's tokenizer."""


EngineBuilder = Callable[[str, SamplingOptions], tuple[ChatEngine, Any]]
"""(base, options) -> (an engine, the parameters that its `chat` takes)."""


def build_vllm_engine(base: str, sampling: SamplingOptions) -> tuple[ChatEngine, Any]:
    """vLLM in this process."""
    from pad_vllm.serving.launch import offline_engine

    llm = {
        "max_model_len": sampling.max_model_len,
        "max_num_seqs": sampling.max_num_seqs,
        "seed": sampling.seed,
        "dtype": sampling.dtype,
        "enforce_eager": sampling.enforce_eager,
        **sampling.engine_arguments,
    }
    params = offline_engine.sampling_params(
        n=sampling.n,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
    )
    return offline_engine.offline_llm(base, llm, sampling.adapter), params


def drawing(base: str, sampling: SamplingOptions) -> Drawing:
    """What records say of how they were drawn. The base is fingerprinted if it is on this machine."""
    weights = None
    try:
        if checkpoint := local_checkpoint(resolve_local_base(base)):
            weights = fingerprint(checkpoint)
    except ValueError:  # not fetched yet, or no safetensors
        pass
    return Drawing(
        base=base,
        fingerprint=weights,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        seed=sampling.seed,
    )


class ResponseSampler:
    """Samples responses with one engine, batch by batch. Can be the class of Ray Data's `map_batches`."""

    def __init__(
        self, base: str, sampling: SamplingOptions, build: EngineBuilder = build_vllm_engine
    ) -> None:
        """Start the engine.

        Args:
            base: a name of `pad-vllm models`, a folder or a hub name.
            sampling: how to sample.
            build: makes the engine.

        Raises:
            ValueError: there is no chat template.
        """
        self.sampling = sampling
        self.engine, self.params = build(base, sampling)
        self.drawn_by = drawing(base, sampling)  # the engine has fetched the base
        self.tokenizer = with_chat_template(
            self.engine.get_tokenizer(), base, sampling.chat_template
        )

    def __call__(self, batch: dict[str, Sequence[str]]) -> dict[str, list[Any]]:
        """Sample responses to a batch of prompts.

        Takes {"prompt": [Conversation.to_json()]} and returns {"line": [str], "failed": [bool]}, in the same
        order. A line is a PreferenceRecord; if `failed` is true, {"prompt": messages, "declined": reason}.
        """
        prompts = [Conversation.from_json(text) for text in batch["prompt"]]
        refusals = [self._refusal(prompt) for prompt in prompts]
        # vLLM raises on a prompt that is too long, which would fail the whole batch.
        accepted = [
            p.messages() for p, refusal in zip(prompts, refusals, strict=True) if not refusal
        ]
        results = iter(self._chat(accepted) if accepted else ())
        lines, failed = [], []
        for prompt, refusal in zip(prompts, refusals, strict=True):
            responses = [] if refusal else _distinct_responses(next(results))
            reason = refusal or _too_few(responses)
            failed.append(bool(reason))
            if reason:
                line = {"prompt": prompt.messages(), "declined": reason}
                lines.append(json.dumps(line, ensure_ascii=False))
            else:
                record = PreferenceRecord(
                    prompt=prompt, responses=responses, drawn_by=self.drawn_by
                )
                lines.append(record_to_line(record))
        return {"line": lines, "failed": failed}

    def _chat(self, conversations: list[Messages]) -> Any:
        template = self.sampling.chat_template
        return self.engine.chat(conversations, self.params, use_tqdm=False, chat_template=template)

    def _refusal(self, prompt: Conversation) -> str:
        """Why the engine cannot take the prompt; empty if it can."""
        try:
            count = len(chat_token_ids(self.tokenizer, prompt.messages()))
        except TemplateError as error:  # such as a system turn for a model that knows none
            return f"the chat template refuses it: {error}"
        room = self.sampling.max_model_len - self.sampling.max_tokens
        return f"{count} tokens, there is room for {room}" if count > room else ""


def _distinct_responses(result: Any) -> list[Response]:
    """The different texts that are not blank, each with the tokens of its first output."""
    response_of: dict[str, Response] = {}
    for output in result.outputs:
        if output.text.strip() and output.text not in response_of:
            response_of[output.text] = Response(
                text=output.text,
                token_ids=list(output.token_ids),
                guided_by=getattr(output, "guided_by", {}),
            )
    return list(response_of.values())


def _too_few(responses: list[Response]) -> str:
    return "" if len(responses) > 1 else f"only {len(responses)} different response(s), not blank"
