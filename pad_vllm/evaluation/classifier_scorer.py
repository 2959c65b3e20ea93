"""A Transformers sequence classifier as a scorer: the probability of one label.

Any checkpoint of AutoModelForSequenceClassification, by hub name or folder. It sees the reply alone,
never the prompt, cut at the model's limit. Knows nothing of files or of preferences.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple


class _Loaded(NamedTuple):
    tokenizer: Any
    model: Any
    label: int
    limit: int | None


class ClassifierScorer:
    """`classifier:MODEL[#LABEL]`: the probability of LABEL (default: the last one).

    Labels that exclude each other share a softmax; a multi-label model has a sigmoid each. A model
    with a single label is a regression: its raw logit. whole is False: text of any length has a score.
    """

    complete_only = False

    def __init__(self, model: str, label: str | None = None, *, batch_size: int = 32) -> None:
        self.model = model
        self.label = label
        self.batch = batch_size
        self.name = f"classifier:{model}" + (f"#{label}" if label else "")

    def __call__(self, prompts: list[str], texts: list[str]) -> list[float | None]:  # noqa: ARG002
        order = sorted(
            range(len(texts)), key=lambda i: len(texts[i])
        )  # a batch pads to its longest
        scores: list[float | None] = [None] * len(texts)
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            for row, value in zip(rows, self._scores([texts[i] for i in rows]), strict=True):
                scores[row] = value
        return scores

    def _scores(self, texts: list[str]) -> list[float]:
        import torch

        tokenizer, model, label, limit = self._loaded
        inputs = tokenizer(
            texts,
            padding=True,
            truncation=limit is not None,
            max_length=limit,
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
        if tokenizer.pad_token is None:  # as in decoders: the head reads the last real token
            tokenizer.pad_token = tokenizer.eos_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        device = torch.accelerator.current_accelerator() or torch.device("cpu")
        limit = _limit(tokenizer, model.config)
        return _Loaded(tokenizer, model.to(device), self._index(model.config), limit)

    def _index(self, config: Any) -> int:
        names = [config.id2label[i] for i in range(config.num_labels)]
        if self.label is None:
            return len(names) - 1
        folded = [name.casefold() for name in names]
        if self.label.casefold() not in folded:
            raise ValueError(
                f"classifier {self.model} has no label {self.label!r}; it has {', '.join(names)}"
            )
        return folded.index(self.label.casefold())


def _limit(tokenizer: Any, config: Any) -> int | None:
    """Tokens a text may have; None where neither tokenizer nor model says."""
    if tokenizer.model_max_length < 1e9:  # else Transformers' stand-in for "not said"
        return int(tokenizer.model_max_length)
    positions = getattr(config, "max_position_embeddings", None)
    return positions - 2 if positions else None  # RoBERTa's first two positions are not for tokens
