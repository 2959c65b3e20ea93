"""A Transformers sequence classifier as a scorer: the probability of one label.

In: any checkpoint of AutoModelForSequenceClassification, by hub name or folder. It reads the reply alone, cut
off at the model's limit, and not the prompt. This module knows nothing of files or of preferences.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple


class _Loaded(NamedTuple):
    tokenizer: Any
    model: Any
    label: int  # index of the label among the logits
    max_tokens: int | None  # that the model can read; None for no limit


class ClassifierScorer:
    """Scores text by the probability of a label, `classifier:MODEL[#LABEL]`; default: the last label.

    Probabilities come from a softmax over the labels, or from a sigmoid per label if the model is
    multi-label. A model with a single label is a regression: its score is the raw logit.
    """

    complete_only = False  # an unfinished reply has a score, too

    def __init__(self, model: str, label: str | None = None, *, batch_size: int = 32) -> None:
        """Loads nothing: the first call does.

        Args:
            model: Hub name or folder of the classifier.
            label: Name of the label, in any case; None: the last one.
            batch_size: Number of texts in one forward pass.
        """
        self.model = model
        self.label = label
        self.batch_size = batch_size
        self.name = f"classifier:{model}" + (f"#{label}" if label else "")

    def __call__(self, prompts: list[str], texts: list[str]) -> list[float | None]:  # noqa: ARG002
        """The score of each text. prompts: not read. Raises ValueError for an unknown label."""
        # Texts of similar length together, because a batch is padded to its longest.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores: list[float | None] = [None] * len(texts)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            for row, value in zip(rows, self._scores([texts[i] for i in rows]), strict=True):
                scores[row] = value
        return scores

    def _scores(self, texts: list[str]) -> list[float]:
        import torch

        tokenizer, model, label, max_tokens = self._loaded
        inputs = tokenizer(
            texts,
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
        # Decoder models: the head reads the last token that is not padding.
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        return _Loaded(
            tokenizer=tokenizer,
            model=model.to(device),
            label=self._label_index(model.config),
            max_tokens=_max_tokens(tokenizer, model.config),
        )

    def _label_index(self, config: Any) -> int:
        names = [config.id2label[i] for i in range(config.num_labels)]
        if self.label is None:
            return len(names) - 1
        folded = [name.casefold() for name in names]
        if self.label.casefold() not in folded:
            raise ValueError(
                f"classifier {self.model} has no label {self.label!r}; it has {', '.join(names)}"
            )
        return folded.index(self.label.casefold())


def _max_tokens(tokenizer: Any, config: Any) -> int | None:
    """Number of tokens that the model can read; None if neither tokenizer nor model gives a limit."""
    if tokenizer.model_max_length < 1e9:  # Transformers has 1e30 for "no limit given"
        return int(tokenizer.model_max_length)
    positions = getattr(config, "max_position_embeddings", None)
    return positions - 2 if positions else None  # RoBERTa reserves the first two positions
