"""Judges of a dimension: lexical scorers, a classifier of meaning, and the teacher.

In: answers to the prompts. Out: scores by judge; higher is more of the dimension. The teacher is the base
with the instruction in its prompt: its score is how much likelier an answer is under it than under the plain
base. A PersRM may be distilled from the teacher. No PersRM is trained on the other judges, except on lexical
scorers that made its training data (training_record.py says which taught).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pad_vllm.evaluation.instruction_classifier import (
    InstructionClassifier,
    fit_instruction_classifier,
)
from pad_vllm.evaluation.lexical_scorers import LEXICAL_JUDGES, LEXICAL_SCORERS
from pad_vllm.evaluation.sentence_embeddings import embed
from pad_vllm.evaluation.win_rates_and_fluency import AnswerLoss, answer_losses
from pad_vllm.opened_base import open_base
from pad_vllm.steering.comparison_conditions import instructed_conditions, unguided_condition
from pad_vllm.steering.guided_answers import (
    AnswerBatch,
    Conversations,
    DecodingSettings,
    DrawnAnswer,
    draw_answers,
    known_losses,
)
from pad_vllm.steering.training_record import TEACHER_JUDGE
from pad_vllm.steering.way import AnswerReading
from pad_vllm.text.chat_template import chat_token_ids
from pad_vllm.text.preference_text import with_instruction

MEANING_JUDGE = "meaning"
"""Name of the judge of meaning in result files."""

_HELD_OUT_SHARE = 0.25  # of the prompts of a judge of meaning, which its accuracy is measured on


@dataclass(frozen=True)
class DimensionJudges:
    """Scores answers by all judges that a dimension has."""

    model: Any
    """The base, a Transformers model in the dtype that the answers were drawn in."""

    tokenizer: Any
    """The base's, with a chat template."""

    instructions: Mapping[str, str]
    """Dimension -> instruction of the teacher; a dimension without one is not judged by the teacher."""

    classifiers: Mapping[str, InstructionClassifier] = field(default_factory=dict)
    """Dimension -> its judge of meaning."""

    def losses(
        self,
        prompts: Conversations,
        answers: Sequence[DrawnAnswer],
        drawn_with: str,
        instruction: str = "",
    ) -> list[AnswerLoss]:
        """Losses of the answers under the base, with an instruction in its prompt or without.

        Args:
            prompts: The prompt of each answer.
            answers: Answers to judge.
            drawn_with: Instruction that the answers were drawn with, empty for none. If it equals
                `instruction`, the losses that the engine gave are returned where they are known.
            instruction: Instruction in the base's prompt; empty for the plain base.

        Returns:
            One per answer.
        """
        if drawn_with == instruction and (losses := known_losses(answers)):
            return losses
        conversations = [prompt.messages() for prompt in prompts]
        if instruction:
            conversations = [with_instruction(messages, instruction) for messages in conversations]
        pairs = [
            (chat_token_ids(self.tokenizer, messages), list(answer.token_ids))
            for messages, answer in zip(conversations, answers, strict=True)
        ]
        return answer_losses(self.model, pairs)

    def scores(
        self,
        dimension: str,
        texts: Sequence[str],
        embeddings: np.ndarray,
        reading: AnswerReading | None = None,
    ) -> dict[str, list[float]]:
        """Scores of answers by each judge of a dimension.

        Args:
            dimension: Dimension to judge by.
            texts: The answers.
            embeddings: [n, E], their sentence embeddings.
            reading: What the teacher judges by; None leaves it out.

        Returns:
            Judge -> score of each answer.
        """
        scores = {
            name: [LEXICAL_SCORERS[name](text) for text in texts]
            for name in LEXICAL_JUDGES.get(dimension, ())
        }
        if dimension in self.classifiers:
            scores[MEANING_JUDGE] = self.classifiers[dimension](embeddings)
        if reading is not None:
            pairs = zip(reading.plain, reading.instructed, strict=True)
            scores[TEACHER_JUDGE] = [plain.nats - instructed.nats for plain, instructed in pairs]
        return scores


def load_judges(
    base: str,
    decoding: DecodingSettings,
    instructions: Mapping[str, str],
    classifiers: Mapping[str, InstructionClassifier] | None = None,
) -> DimensionJudges:
    """Judges of answers that were drawn from `base` by `decoding`; the other arguments are their fields."""
    model, tokenizer, _ = open_base(
        base, dtype=decoding.dtype, chat_template=decoding.chat_template
    )
    return DimensionJudges(model, tokenizer, instructions, classifiers or {})


def judge_accuracies(classifiers: Mapping[str, InstructionClassifier]) -> dict[str, float]:
    """Dimension -> held-out accuracy of its judge of meaning, rounded, for result files."""
    return {name: round(classifier.accuracy, 4) for name, classifier in classifiers.items()}


def fit_meaning_judges(
    base: str, instructions: Mapping[str, str], prompts: Conversations, decoding: DecodingSettings
) -> dict[str, InstructionClassifier]:
    """Draws answers to other prompts than the judged ones, and fits a judge of meaning per instruction.

    Args:
        base: Base that is asked.
        instructions: Dimension -> instruction.
        prompts: Prompts of the answers; each is answered without and with every instruction.
        decoding: How the answers are drawn.

    Returns:
        Dimension -> judge of meaning.
    """
    conditions = [unguided_condition(), *instructed_conditions(instructions)]
    (answers,) = draw_answers(AnswerBatch(base, None, prompts, conditions, [decoding]))
    return meaning_judges_from_answers(instructions, answers)


def meaning_judges_from_answers(
    instructions: Mapping[str, str], answers: Sequence[Sequence[DrawnAnswer]]
) -> dict[str, InstructionClassifier]:
    """Fits a judge of meaning per instruction.

    answers: the unguided ones, then those with each instruction in order, all to the same prompts.
    """
    plain, *instructed = answers
    plain_embeddings = embed([answer.text for answer in plain])
    held_out = max(int(_HELD_OUT_SHARE * len(plain)), 1)
    return {
        name: fit_instruction_classifier(
            embed([answer.text for answer in row]), plain_embeddings, held_out
        )
        for name, row in zip(instructions, instructed, strict=True)
    }
