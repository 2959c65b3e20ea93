"""What clients send to the routes of users, validated.

In: JSON. Out: pydantic models. Every refusal says which field, what was found and what is accepted. Knows no
profile: whether a dimension exists is for the routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from pad_vllm.profiles.profile import NamedChoice
from pad_vllm.weights_syntax import parse_weights
from pad_vllm.wording import listed, refusal

MAX_WEIGHT = 10.0
"""Largest |weight| in what is learned from: one act must not outweigh all others."""

MAX_ANSWER_TOKENS = 2048
_MAX_TURNS = 64
_TIE = "tie"


def _small_weights(value: Any) -> dict[str, float]:
    weights = dict(parse_weights(value))
    for name, weight in weights.items():
        if abs(weight) > MAX_WEIGHT:
            raise refusal(
                f"the weight of {name}",
                weight,
                f"-{MAX_WEIGHT:g} to {MAX_WEIGHT:g}",
                "scale the weights down",
            )
    return weights


Text = Annotated[StrictStr, Field(min_length=1)]  # strict ones have no lone surrogates
NamedWeights = Annotated[Any, AfterValidator(_small_weights)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Turn(_Body):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class _Prompted(_Body):
    messages: Annotated[list[Turn], Field(min_length=1, max_length=_MAX_TURNS)] | None = None
    prompt: Text | None = None

    def turns(self) -> list[dict[str, str]] | None:
        """The conversation; None where the body has none. Raises ValueError where it has two."""
        if self.messages is not None and self.prompt is not None:
            raise ValueError("messages and prompt are given; accepted: one of them. Leave one out.")
        if self.messages is not None:
            return [turn.model_dump() for turn in self.messages]
        return None if self.prompt is None else [{"role": "user", "content": self.prompt}]


class QuestionBody(_Prompted):
    """What a question is to be asked about."""

    max_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_ANSWER_TOKENS)] = 200
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8


class StatedBody(_Body):
    """What a user says they like."""

    weights: NamedWeights = None
    sentence: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_of_both(cls, fields: Any) -> Any:
        names = ("weights", "sentence")
        if isinstance(fields, dict) and sum(fields.get(name) is not None for name in names) != 1:
            raise ValueError('accepted: {"weights": {"NAME": NUMBER}} or {"sentence": "..."}')
        return fields


_FORMS = {
    "question": {"question", "chosen", "strength"},
    "rejected": {"messages", "prompt", "chosen", "rejected", "strength"},
    "liked": {"messages", "prompt", "answer", "weights", "liked", "strength"},
}
"""The field that a form of a choice is known by -> the fields that it may have."""


class ChoiceBody(_Prompted):
    """One act of a user: an answered question, a choice between two texts, or a thumb on one answer."""

    question: Text | None = None
    chosen: StrictInt | Text | None = None
    rejected: Text | None = None
    answer: Text | None = None
    weights: NamedWeights | None = None
    liked: StrictBool | None = None
    strength: Annotated[float, Field(gt=0, le=10)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _one_form(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        if not fields.get("weights", True):  # null or none: the answer was not guided
            fields = {name: value for name, value in fields.items() if name != "weights"}
        forms = [name for name in _FORMS if name in fields]
        if len(forms) != 1:
            raise ValueError(
                f"{listed(forms)} given; accepted: one of question (with chosen), rejected (with chosen) and "
                "liked (with answer and weights)"
            )
        others = [
            name for name in fields if name in cls.model_fields and name not in _FORMS[forms[0]]
        ]
        if others:
            raise ValueError(f"{listed(others)} beside {forms[0]}; leave them out")
        return fields

    def outcome(self) -> float:
        """Of an answered question: 1 for the first answer, 0 for the second, 0.5 for a tie."""
        outcomes: dict[object, float] = {0: 1.0, 1: 0.0, _TIE: 0.5}
        if self.chosen not in outcomes:
            raise refusal(
                "chosen", self.chosen, '0 (the first answer), 1 (the second) or "tie"', "say which"
            )
        return outcomes[self.chosen]

    def thumb(self) -> NamedChoice | None:
        """A thumb on a guided answer, as a choice against the unguided one; None for another form.

        Raises ValueError where no weights guided the answer.
        """
        if self.liked is None:
            return None
        if not self.weights or not any(self.weights.values()):
            raise ValueError(
                "weights are missing or 0, so the answer was not guided and says nothing of weights; "
                "accepted: the weights that guided it. Send them along, or post a choice between two answers."
            )
        return NamedChoice(self.weights, float(self.liked), self.strength)

    def two_texts(self) -> tuple[list[dict[str, str]], str, str]:
        """Of a choice between given texts: the conversation, the preferred answer, the other one.

        Raises ValueError for a choice that says nothing.
        """
        if not isinstance(self.chosen, str):
            raise refusal("chosen", self.chosen, "the text that was preferred", "send it")
        if self.rejected is None or self.chosen == self.rejected:
            raise refusal("rejected", self.rejected, "another text than chosen", "leave ties out")
        for name, text in (("chosen", self.chosen), ("rejected", self.rejected)):
            if not text.strip():
                raise refusal(name, text, "an answer that is not blank", "leave empty answers out")
        turns = self.turns()
        if turns is None or turns[-1]["role"] != "user":
            raise ValueError(
                "the texts answer no turn of a user; accepted: messages that end with one, or prompt. Send "
                "what was asked"
            )
        return turns, self.chosen, self.rejected
