"""Who judges a dimension: scorers of words, a classifier of meaning, and the teacher itself.

In: answers to the prompts. Out: scores by judge, more is more of the dimension. The teacher is the base told
the sentence: how much likelier it holds an answer than the base does. It taught; the others taught nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pad_vllm.evaluation import instruction_classifier
from pad_vllm.evaluation.lexical_scorers import LEXICAL_JUDGES, LEXICAL_SCORERS
from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.evaluation.text_measures import answer_losses
from pad_vllm.steering.comparison_conditions import instructed_conditions, unguided_condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
    draw_answers,
    known_losses,
)
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.preference_text import with_instruction

TEACHER_JUDGE, MEANING_JUDGE = "teacher", "meaning"
_TRIED = 0.25  # share of a judge's prompts that its accuracy is measured on


@dataclass(frozen=True)
class DimensionJudges:
    """sentences: of each dimension that has one. leanings: judges of meaning, by dimension."""

    model: Any  # a Transformers model
    tokenizer: Any
    instructions: Mapping[str, str]
    classifiers: Mapping[str, instruction_classifier.InstructionClassifier] = field(
        default_factory=dict
    )

    def losses(
        self, prompts: Conversations, said: Sequence[DrawnAnswer], asked: str, sentence: str = ""
    ) -> list[tuple[float, int]]:
        """(negative log-likelihood, tokens) of each answer under the base that was told `sentence`.

        asked: the sentence that the answers were drawn with, whose losses they know themselves.
        """
        if asked == sentence and (known := known_losses(said)):
            return known
        chats = [prompt.messages() for prompt in prompts]
        chats = [with_instruction(chat, sentence) for chat in chats] if sentence else chats
        pairs = [
            (chat_token_ids(self.tokenizer, chat), list(one.token_ids))
            for chat, one in zip(chats, said, strict=True)
        ]
        return answer_losses(self.model, pairs)

    def scores(
        self,
        dimension: str,
        prompts: Conversations,
        said: Sequence[DrawnAnswer],
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
            name: [LEXICAL_SCORERS[name](text) for text in texts]
            for name in LEXICAL_JUDGES.get(dimension, ())
        }
        if dimension in self.classifiers:
            found[MEANING_JUDGE] = self.classifiers[dimension](embedded)
        if dimension in self.instructions:
            wished = self.losses(prompts, said, asked, self.instructions[dimension])
            found[TEACHER_JUDGE] = [p[0] - w[0] for p, w in zip(plain, wished, strict=True)]
        return found


def judge_accuracies(
    leanings: Mapping[str, instruction_classifier.InstructionClassifier],
) -> dict[str, float]:
    """How often each judge of meaning is right on pairs that it was not fitted on, for what is written."""
    return {name: round(one.accuracy, 4) for name, one in leanings.items()}


def fit_meaning_judges(
    base: str, sentences: Mapping[str, str], prompts: Conversations, decoding: DecodingSettings
) -> dict[str, instruction_classifier.InstructionClassifier]:
    """A judge of meaning for each sentence, from answers to prompts that are not the judged ones."""
    asked = [unguided_condition(), *instructed_conditions(sentences)]
    return meaning_judges_from_answers(
        sentences, draw_answers(AnswerBatch(base, None, prompts, asked, [decoding]))[0]
    )


def meaning_judges_from_answers(
    sentences: Mapping[str, str], said: Sequence[Sequence[DrawnAnswer]]
) -> dict[str, instruction_classifier.InstructionClassifier]:
    """The same of answers that are there. said: unguided, then told each sentence, to the same prompts."""
    plain, *wished = said
    embedded = embed([one.text for one in plain])
    tried = max(int(_TRIED * len(plain)), 1)
    return {
        name: instruction_classifier.fit_instruction_classifier(
            embed([one.text for one in said]), embedded, tried
        )
        for name, said in zip(sentences, wished, strict=True)
    }
