"""The routes of users: /v1/pad/users/{user}, .../question and .../choices.

In: JSON (profile_bodies.py). Out: a profile, or a question. Whatever waits for the disk or fits weights runs
in a thread. They are behind the server's key, and behind a user's token where the server wants tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from pad_vllm.choices.sentence_weights import LITTLE, is_foreign
from pad_vllm.profiles.profile import Profile, UnknownUser, weights_text
from pad_vllm.profiles.question_prompts import random_prompt
from pad_vllm.serving.frontend.profile_bodies import ChoiceBody, QuestionBody, StatedBody
from pad_vllm.serving.frontend.profile_questions import QuestionDraw
from pad_vllm.serving.frontend.route_errors import PADRoute, RefusedRequest
from pad_vllm.serving.frontend.served_front_end import served_front_end
from pad_vllm.user_name import require_user_name
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.wording import did_you_mean, listed, short_repr

if TYPE_CHECKING:
    from pad_vllm.serving.frontend.profile_admission import ProfileAdmission
    from pad_vllm.serving.frontend.text_readings import TextReadings

router = APIRouter(prefix="/users/{user}", route_class=PADRoute)


class NamedUser:
    """The user that a path names, and the profiles of the server."""

    def __init__(self, request: Request, user: str) -> None:
        """FastAPI calls it for every route. Raises RefusedRequest or ValueError where there is no answer."""
        self.name = require_user_name("the user in the path", user)
        front_end = served_front_end(request)
        profiles: ProfileAdmission | None = front_end.profiles
        if profiles is None:
            raise RefusedRequest(
                HTTPStatus.BAD_REQUEST,
                "this server keeps no profiles; accepted: one that was started with --profiles FILE",
            )
        self.profiles, self.base_name = profiles, front_end.base_name
        self._has_jobs = front_end.jobs is not None
        self.dimensions = front_end.adapters.limits.dimensions
        try:
            profiles.require_allowed(self.name)
        except PermissionError as error:
            raise RefusedRequest(HTTPStatus.FORBIDDEN, str(error)) from None

    async def call(self, method: str, *args: Any) -> Any:
        """What a method of the store returns for this user. Raises RefusedRequest for an unknown user."""
        try:
            function = getattr(self.profiles.store, method)
            return await self.profiles.in_thread(function, self.name, *args)
        except UnknownUser:
            what = "question that waits for a choice" if method == "answer_question" else "profile"
            raise RefusedRequest(
                HTTPStatus.NOT_FOUND,
                f"there is no such {what} of {short_repr(self.name)}; accepted: one that this server has. "
                "Post a choice or weights to begin one",
            ) from None

    def readings(self, what: str) -> TextReadings:
        """By whom texts are read. Raises ValueError where nobody reads them; what: was sent."""
        if self.profiles.readings is None:
            raise ValueError(
                f"{what}: this server does not read texts of users; accepted: weights, the answer to a "
                "question of POST /v1/pad/users/NAME/question, or a thumb (liked) on an answer with the "
                "weights that guided it. A server that was started with --profile-reader cpu reads texts"
            )
        return self.profiles.readings

    def as_json(self, profile: Profile) -> dict[str, Any]:
        """The profile as clients read it."""
        return {
            "user": profile.user,
            "version": profile.version,
            "weights": profile.weights,
            "pad_weights": weights_text(profile.weights),
            "intervals": profile.intervals,
            "choices": profile.num_choices,
            "conversations": profile.num_conversations,
            "learns_from_conversations": self.profiles.learner is not None,
        }

    @property
    def way_to_dimensions(self) -> str:
        """How a dimension is made of a sentence here."""
        by_command = "the operator: pad-vllm train --teacher prompt"
        return "POST /v1/pad/jobs" if self._has_jobs else by_command

    def require_dimensions(self, weights: Mapping[str, float]) -> None:
        """Raises ValueError for weights of a dimension that the adapter does not have."""
        for name in weights:
            if name not in self.dimensions:
                raise ValueError(
                    f"weights name {short_repr(name)}, which this adapter does not have."
                    f"{did_you_mean(name, self.dimensions)} Accepted dimensions: "
                    f"{listed(self.dimensions)}."
                )


User = Annotated[NamedUser, Depends()]


@router.get("")
async def get_profile(user: User) -> dict[str, Any]:
    """What is known of a user."""
    return user.as_json(await user.call("get"))


@router.put("")
async def put_profile(user: User, body: StatedBody) -> dict[str, Any]:
    """State what a user likes; their choices so far stay."""
    if body.sentence is None:
        user.require_dimensions(body.weights)
        return user.as_json(await user.call("put_stated", body.weights))
    reading = await user.readings("sentence").sentence(body.sentence)
    if is_foreign(reading.explained):
        raise ValueError(
            f"the adapter's dimensions explain {reading.explained:.0%} of what this sentence teaches the "
            f"model; accepted: at least {LITTLE:.0%}. Have a dimension made of it "
            f"({user.way_to_dimensions}), or state weights"
        )
    stated = user.as_json(await user.call("put_stated", reading.weights))
    return {**stated, "explained": round(reading.explained, 3)}


@router.delete("", status_code=HTTPStatus.NO_CONTENT)
async def delete_profile(user: User) -> Response:
    """Delete all that is known of a user."""
    await user.call("delete")
    await user.profiles.in_thread(user.profiles.cache.refresh)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.post("/question")
async def ask(user: User, body: QuestionBody, request: Request) -> dict[str, Any]:
    """A prompt and two answers, for the user to choose from."""
    weights = await user.call("propose_question")
    messages = body.turns() or [{"role": "user", "content": random_prompt()}]
    draw = QuestionDraw(request.app, user.base_name, messages, body.max_tokens, body.temperature)
    answers = await draw.answers(weights)
    question = await user.call("add_question", *weights)
    return {
        "question": question,
        "messages": messages,
        "answers": [{"text": text} for text in answers],
    }


@router.post("/choices")
async def choose(user: User, body: ChoiceBody) -> dict[str, Any]:
    """Learn from an act of the user -> the profile."""
    if body.question is not None:
        profile = await user.call("answer_question", body.question, body.outcome(), body.strength)
    elif (thumb := body.thumb()) is not None:
        user.require_dimensions(thumb.x)
        profile = await user.call("add_choice", thumb)
    else:
        texts = body.two_texts()
        readings = user.readings("chosen and rejected, which are texts")
        profile = await user.call("add_choice", await readings.choice(*texts, body.strength))
    pad_metrics().count_choice()
    return user.as_json(profile)
