"""A Transformers sequence classifier as a scorer: the probability of a label, or a reward model's logit.

In: any checkpoint of AutoModelForSequenceClassification, by hub name or folder. `classifier:` reads the reply
alone, cut off at the model's limit. `reward:` reads prompt and reply: the conversation in the checkpoint's
chat template, or a pair of texts where it has none, whose beginning is cut off. This module knows nothing of
files or of preferences.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

from pad_vllm.text.conversation import Conversation

logger = logging.getLogger(__name__)


class _Loaded(NamedTuple):
    tokenizer: Any
    model: Any
    label: int  # index of the label among the logits
    max_tokens: int | None  # that the model can read; None for no limit


class ClassifierScorer:
    """Scores a reply by the probability of a label; default: the last label.

    `classifier:MODEL[#LABEL]` reads the reply, `reward:MODEL[#LABEL]` the prompt and the reply. Probabilities
    come from a softmax over the labels, or from a sigmoid per label if the model is multi-label. A model with
    a single label is a regression or a reward model: its score is the raw logit.
    """

    complete_only = False  # an unfinished reply has a score, too

    def __init__(
        self,
        model: str,
        label: str | None = None,
        *,
        reads_prompt: bool = False,
        batch_size: int = 32,
    ) -> None:
        """Loads nothing: the first call does.

        Args:
            model: Hub name or folder of the classifier.
            label: Name of the label, in any case; None: the last one, the only one of a `reads_prompt`.
            reads_prompt: Whether the model reads the prompt, too.
            batch_size: Number of texts in one forward pass.
        """
        self.model = model
        self.label = label
        self.reads_prompt = reads_prompt
        self.batch_size = batch_size
        self.kind = "reward" if reads_prompt else "classifier"
        self.name = f"{self.kind}:{model}" + (f"#{label}" if label else "")

    def __call__(self, prompts: Sequence[Conversation], texts: list[str]) -> list[float | None]:
        """The score of each text. prompts: of each text. Raises ValueError for an unknown label."""
        if not texts:
            return []
        inputs = self._inputs(prompts, texts)
        lengths = [sum(map(len, parts)) for parts in zip(*inputs, strict=True)]
        # Texts of similar length together, because a batch is padded to its longest.
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        scores: list[float | None] = [None] * len(texts)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = [[part[i] for i in rows] for part in inputs]
            for row, value in zip(rows, self._scores(batch), strict=True):
                scores[row] = value
        return scores

    def _inputs(self, prompts: Sequence[Conversation], texts: list[str]) -> list[list[str]]:
        """The tokenizer's arguments: texts, or the first and the second texts of pairs."""
        if not self.reads_prompt:
            return [texts]
        if not self._loaded.tokenizer.chat_template:
            return [[prompt.as_text() for prompt in prompts], texts]
        conversations = [
            [*prompt.messages(), {"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        return [self._loaded.tokenizer.apply_chat_template(conversations, tokenize=False)]

    def _scores(self, batch: list[list[str]]) -> list[float]:
        import torch

        tokenizer, model, label, max_tokens = self._loaded
        inputs = tokenizer(
            *batch,
            # A chat template writes the special tokens itself.
            add_special_tokens=not (self.reads_prompt and len(batch) == 1),
            padding=True,
            truncation=max_tokens is not None,
            max_length=max_tokens,
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            logits = model(**inputs).logits.float()  # [texts, labels]
        if logits.shape[1] == 1:
            return logits[:, 0].tolist()
        if model.config.problem_type == "multi_label_classification":
            return logits.sigmoid()[:, label].tolist()
        return logits.softmax(dim=-1)[:, label].tolist()

    @cached_property
    def _loaded(self) -> _Loaded:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model)
        model = AutoModelForSequenceClassification.from_pretrained(self.model).eval()
        if self.reads_prompt:
            tokenizer.truncation_side = "left"  # the reply is at the end
        elif model.config.num_labels == 1 and tokenizer.chat_template:
            logger.warning(
                "%s has one logit and a chat template, as reward models of conversations have, and reads the "
                "reply alone; if it is one, name it reward:%s",
                self.name,
                self.model,
            )
        # Decoder models: the head reads the last token that is not padding.
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        device = torch.accelerator.current_accelerator(check_available=True)
        return _Loaded(
            tokenizer=tokenizer,
            model=model.to(device or "cpu"),
            label=self._label_index(model.config),
            max_tokens=_max_tokens(tokenizer, model.config),
        )

    def _label_index(self, config: Any) -> int:
        names = [config.id2label[i] for i in range(config.num_labels)]
        if self.label is None:
            if self.reads_prompt and len(names) > 1:
                raise ValueError(
                    f"reward model {self.model} has several labels, {', '.join(names)}; name the one that is "
                    f"the score: reward:{self.model}#{names[0]}"
                )
            return len(names) - 1
        folded = [name.casefold() for name in names]
        if self.label.casefold() not in folded:
            raise ValueError(
                f"{self.kind} {self.model} has no label {self.label!r}; it has {', '.join(names)}"
            )
        return folded.index(self.label.casefold())


def _max_tokens(tokenizer: Any, config: Any) -> int | None:
    """Number of tokens that the model can read; None if neither tokenizer nor model gives a limit."""
    if tokenizer.model_max_length < 1e9:  # Transformers has 1e30 for "no limit given"
        return int(tokenizer.model_max_length)
    positions = getattr(config, "max_position_embeddings", None)
    return positions - 2 if positions else None  # RoBERTa reserves the first two positions
