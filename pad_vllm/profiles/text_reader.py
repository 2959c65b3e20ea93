"""Reads what people write for the server: two answers to compare, a sentence on how they like answers, or
earlier turns of a conversation.

In: a base with an adapter in PyTorch, texts. Out: differences of features and weights, by name of dimension;
the numbers of `pad-vllm fit`. Keeps no text. Knows neither users nor processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.adapter.manifest import taught_sentences
from pad_vllm.choices.answer_sequences import answer_sequences, context_tokens
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.choices.dialogue_units import UnitsReader
from pad_vllm.choices.feature_sums import feature_sums
from pad_vllm.choices.observed_choice import ObservedChoice
from pad_vllm.choices.sentence_weights import (
    ANSWER_TOKENS,
    IsInterrupted,
    SentenceReader,
    sentence_prompts,
)
from pad_vllm.opened_base import open_base
from pad_vllm.persrm import PersRM
from pad_vllm.profiles.profile import NamedChoice
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.conversation import Conversation

MAX_TOKENS = 4096
"""Of a prompt and one answer, where the base reads more: two of them take a base of 135M ten seconds on a
core, and others wait for it."""

MAX_SENTENCE_TOKENS = 256
"""A sentence is read behind each of 16 prompts."""

MAX_CONVERSATION_TOKENS = 1024
"""Of a conversation with a prompt behind it: the newest turns that fit. It is read as often as there are
prompts.
"""

_DIGITS = 3  # of weights, as profiles have them


@dataclass(frozen=True)
class ReaderSettings:
    """What a reader opens."""

    base: str
    """Folder or hub name of the base that the adapter was trained on."""

    adapter: str
    """Folder."""

    device: str
    """torch.device."""

    chat_template: str | None = None
    """Text of a Jinja template; None: the adapter's, or else the base's own."""

    allow_mismatch: bool = False
    """Whether the base may have other weights than the adapter was trained on."""

    conversations: bool = False
    """Whether conversations will be read."""


@dataclass(frozen=True)
class SentenceReading:
    """What the adapter's dimensions make of a sentence."""

    weights: dict[str, float]
    """Of every dimension, the largest |weight| is 1."""

    explained: float
    """Share of what the sentence teaches that these weights explain, 0 to 1."""


@dataclass(frozen=True)
class ConversationReading:
    """What the adapter's dimensions make of a conversation."""

    weights: dict[str, float]
    """Of every dimension: 0 is what the base's own conversations teach, 1 what the dimension's own
    instruction does.
    """


class TextReader:
    """Of one adapter on its base."""

    def __init__(
        self,
        model: PersRM,
        tokenizer: Any,
        top_k: int,
        instructions: Mapping[str, str] | None = None,
    ) -> None:
        """Read nothing yet.

        Args:
            model: the adapter on its base.
            tokenizer: the base's, with a chat template.
            top_k: candidates of a token, by which sentences are read.
            instructions: by which dimensions were taught, where conversations are to be read; those of other
                dimensions are not scaled. None: of no dimension, and nothing is read ahead for conversations.
        """
        self._model, self._tokenizer = model, tokenizer
        self._learns = instructions is not None
        self._max_tokens = min(context_tokens(model.backbone), MAX_TOKENS)
        prompts = sentence_prompts()
        self._sentences = SentenceReader(CandidateReader(model, tokenizer, top_k), prompts)
        self._units = UnitsReader(self._sentences, instructions or {})
        self._longest_prompt = max(prompts, key=lambda prompt: len(prompt.as_text())).messages()

    def read_ahead(self, is_interrupted: IsInterrupted = lambda: False) -> bool:
        """Do a part of what the first sentence or conversation would wait for. False: nothing is left.

        is_interrupted: asked often; where it says so, this part is done another time.
        """
        if self._sentences.read_ahead(is_interrupted):
            return True
        return self._learns and self._units.read_ahead(is_interrupted)

    def choice(self, messages: Sequence[dict[str, str]], chosen: str, rejected: str) -> NamedChoice:
        """A choice between two answers to a conversation.

        Args:
            messages: ends with a turn of the user.
            chosen: the answer that was preferred.
            rejected: the other one.

        Raises:
            ValueError: texts that are too long, that the chat template refuses, or that the model cannot tell
                apart.
        """
        prompt = Conversation.model_validate(list(messages))
        sequences = answer_sequences(self._tokenizer, prompt, (chosen, rejected), self._max_tokens)
        lengths = torch.tensor([max(len(answer), 1) for _, answer in sequences])
        found = ObservedChoice.between_texts(feature_sums(self._model, sequences), lengths)
        if not found.x.any():
            raise ValueError(
                "both answers have the same features, so a choice between them says nothing; accepted: "
                "answers that differ"
            )
        x = dict(zip(self._model.dimensions, found.x.tolist(), strict=True))
        return NamedChoice(x, found.outcome, found.strength, found.length)

    def sentence(self, text: str) -> SentenceReading:
        """Weights of a sentence. Raises ValueError for one that is too long, or without text."""
        num_tokens = len(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        if num_tokens > MAX_SENTENCE_TOKENS:
            raise ValueError(
                f"sentence has {num_tokens:,} tokens; accepted: at most {MAX_SENTENCE_TOKENS}. Shorten it"
            )
        found = self._sentences.weights(text)
        return SentenceReading(self._named(found.w), found.explained)

    def conversation(self, turns: Sequence[dict[str, str]]) -> ConversationReading:
        """Weights of the newest turns of a conversation.

        turns: messages of user and assistant, the last of the assistant. Raises ValueError where the last two
        are too long, or the chat template refuses them.
        """
        from jinja2 import TemplateError

        try:
            w = self._units.units().measure(self._sentences.dialogue_weights(self._newest(turns)))
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation ({error})") from error
        if not w.isfinite().all():
            raise ValueError("the conversation's weights are NaN or infinite")
        return ConversationReading(self._named(w))

    def _newest(self, turns: Sequence[dict[str, str]]) -> Sequence[dict[str, str]]:
        """The newest turns that fit, from one of the user on. Raises ValueError where none do."""
        limit = min(MAX_CONVERSATION_TOKENS, self._max_tokens) - ANSWER_TOKENS
        first = len(turns)
        for start in range(len(turns) - 1, -1, -1):
            if turns[start]["role"] != "user":
                continue
            asked = [*turns[start:], *self._longest_prompt]
            if len(chat_token_ids(self._tokenizer, asked)) > limit:
                break
            first = start
        if first == len(turns):
            raise ValueError(
                f"the last answer and its question have more than {limit:,} tokens; accepted: at most so many"
            )
        return turns[first:]

    def _named(self, w: Tensor) -> dict[str, float]:
        rounded = (float(f"{value + 0.0:.{_DIGITS}g}") for value in w.tolist())
        return dict(zip(self._model.dimensions, rounded, strict=True))


def open_text_reader(settings: ReaderSettings) -> TextReader:
    """Open base and adapter. Raises ValueError where they cannot be read or do not belong together."""
    adapter = load_adapter(settings.adapter)
    backbone, tokenizer, folder = open_base(
        settings.base,
        device=torch.device(settings.device),
        chat_template=settings.chat_template or adapter.config.chat_template,
    )
    require_same_backbone(
        adapter.config.backbone,
        Backbone.from_checkpoint(folder),
        allow_mismatch=settings.allow_mismatch,
    )
    return TextReader(
        PersRM.from_adapter(backbone, adapter),
        tokenizer,
        adapter.config.top_k,
        taught_sentences(adapter.config) if settings.conversations else None,
    )
