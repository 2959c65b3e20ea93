"""Who judges a dimension: scorers of words, a classifier of meaning, and the teacher itself.

In: answers to the prompts. Out: scores by judge, more is more of the dimension. The teacher is the base told
the sentence: how much likelier it holds an answer than the base does. It taught; the others taught nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pad_vllm.evaluation import instruction_classifier
from pad_vllm.evaluation.lexical_scorers import BESIDE, SCORERS
from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.evaluation.text_measures import token_losses
from pad_vllm.steering.comparison_conditions import told, unguided
from pad_vllm.steering.guided_answers import Answer, Batch, Decoding, Prompts, answers, losses
from pad_vllm.text.chat_template import chat_ids
from pad_vllm.text.preference_text import with_wish

TEACHER, MEANING = "teacher", "meaning"
_TRIED = 0.25  # share of a judge's prompts that its accuracy is measured on


@dataclass(frozen=True)
class Judges:
    """sentences: of each dimension that has one. leanings: judges of meaning, by dimension."""

    base: Any  # a Transformers model
    tokenizer: Any
    sentences: Mapping[str, str]
    leanings: Mapping[str, instruction_classifier.Leaning] = field(default_factory=dict)

    def losses(
        self, prompts: Prompts, said: Sequence[Answer], asked: str, sentence: str = ""
    ) -> list[tuple[float, int]]:
        """(negative log-likelihood, tokens) of each answer under the base that was told `sentence`.

        asked: the sentence that the answers were drawn with, whose losses they know themselves.
        """
        if asked == sentence and (known := losses(said)):
            return known
        chats = [json.loads(prompt) for prompt in prompts]
        chats = [with_wish(chat, sentence) for chat in chats] if sentence else chats
        pairs = [
            (chat_ids(self.tokenizer, chat), list(one.token_ids))
            for chat, one in zip(chats, said, strict=True)
        ]
        return token_losses(self.base, pairs)

    def scores(
        self,
        dimension: str,
        prompts: Prompts,
        said: Sequence[Answer],
        asked: str,
        plain: Sequence[tuple[float, int]],
        embedded: np.ndarray,
    ) -> dict[str, list[float]]:
        """Judge -> a score of each answer.

        asked: as in `losses`; plain: `losses` of the answers under the base that was told nothing;
        embedded: their embeddings.
        """
        texts = [one.text for one in said]
        found = {
            name: [SCORERS[name](text) for text in texts] for name in BESIDE.get(dimension, ())
        }
        if dimension in self.leanings:
            found[MEANING] = self.leanings[dimension](embedded)
        if dimension in self.sentences:
            wished = self.losses(prompts, said, asked, self.sentences[dimension])
            found[TEACHER] = [p[0] - w[0] for p, w in zip(plain, wished, strict=True)]
        return found


def accuracies(leanings: Mapping[str, instruction_classifier.Leaning]) -> dict[str, float]:
    """How often each judge of meaning is right on pairs that it was not fitted on, for what is written."""
    return {name: round(one.accuracy, 4) for name, one in leanings.items()}


def fit(
    base: str, sentences: Mapping[str, str], prompts: Prompts, decoding: Decoding
) -> dict[str, instruction_classifier.Leaning]:
    """A judge of meaning for each sentence, from answers to prompts that are not the judged ones."""
    asked = [unguided(), *told(sentences)]
    return fit_on(sentences, answers(Batch(base, None, prompts, asked, [decoding]))[0])


def fit_on(
    sentences: Mapping[str, str], said: Sequence[Sequence[Answer]]
) -> dict[str, instruction_classifier.Leaning]:
    """The same of answers that are there. said: unguided, then told each sentence, to the same prompts."""
    plain, *wished = said
    embedded = embed([one.text for one in plain])
    tried = max(int(_TRIED * len(plain)), 1)
    return {
        name: instruction_classifier.fit(embed([one.text for one in said]), embedded, tried)
        for name, said in zip(sentences, wished, strict=True)
    }
