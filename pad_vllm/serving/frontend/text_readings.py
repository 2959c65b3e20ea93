"""What routes have the background reader read: a choice between two given texts, or a sentence.

In: texts of a body. Out: what a profile keeps, or an HTTP error: 429 where too much waits, 503 where the
reader has ended or is late. No route waits for longer than WAIT_S, and the event loop for nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus

from pad_vllm.adapter.manifest import read_config
from pad_vllm.config import PADConfig
from pad_vllm.engines.reward_model.scorer_loader import reward_checkpoint
from pad_vllm.profiles.background_reader import (
    Answer,
    BackgroundReader,
    Question,
    ReaderEnded,
    ReaderFull,
)
from pad_vllm.profiles.profile import NamedChoice
from pad_vllm.profiles.text_reader import ReaderSettings, SentenceReading
from pad_vllm.serving.frontend.route_errors import RefusedRequest
from pad_vllm.text.chat_template import read_chat_template
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.vllm_api.vllm_names import init_logger

logger = init_logger(__name__)

WAIT_S = 45.0
"""A reading takes a second or so; many proxies end a request after 60."""

_NOTHING_LEARNED = "so nothing was learned from this"


class TextReadings:
    """The readings of one front end."""

    def __init__(self, reader: BackgroundReader, wait_s: float = WAIT_S) -> None:
        """Of a reader that was started.

        Args:
            reader: that reads.
            wait_s: seconds after which a request is answered without its reading.
        """
        self.reader, self._wait_s = reader, wait_s

    @property
    def runs(self) -> bool:
        """Whether the reader is there."""
        return self.reader.runs

    async def choice(
        self, messages: Sequence[dict[str, str]], chosen: str, rejected: str, strength: float
    ) -> NamedChoice:
        """A choice between two answers to a conversation, as differences of features.

        Args:
            messages: the conversation.
            chosen: the answer that was preferred.
            rejected: the other one.
            strength: how many choices it counts as.

        Raises:
            ValueError: texts that say nothing.
            RefusedRequest: they were not read.
        """
        question = {"messages": list(messages), "chosen": chosen, "rejected": rejected}
        return NamedChoice(**{**await self._read(question), "strength": strength})

    async def sentence(self, text: str) -> SentenceReading:
        """Weights of a sentence. Raises as `choice` does."""
        return SentenceReading(**await self._read({"sentence": text}))

    async def _read(self, question: Question) -> Answer:
        try:
            reading = asyncio.wrap_future(self.reader.ask(question))
            answer = await asyncio.wait_for(reading, self._wait_s)
        except ReaderFull as error:
            pad_metrics().count_unread_text("full")
            raise RefusedRequest(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{error}, {_NOTHING_LEARNED}; accepted: fewer at once. Ask again in some seconds",
                {"Retry-After": "5"},
            ) from None
        except asyncio.TimeoutError:
            raise _unread("late", f"gave no answer in {self._wait_s:g} seconds", 10) from None
        except ReaderEnded:
            raise _unread("ended", "is not running; the server's log says why", 60) from None
        if "failed" in answer:
            raise _unread("failed", "failed; the server's log says why", 10, answer["failed"])
        if "refused" in answer:
            raise ValueError(answer["refused"])
        pad_metrics().count_read_text()
        result: Answer = answer["result"]
        return result


def _unread(reason: str, what: str, retry_after_s: int, details: str = "") -> RefusedRequest:
    """The error of a reading that did not come; it is logged, without the texts, and counted.

    Args:
        reason: label of the count.
        what: happened to the reader, as clients read it.
        retry_after_s: when to ask again.
        details: for the log.
    """
    logger.error("PAD: a text of a user was not read: %s%s", reason, details and f" ({details})")
    pad_metrics().count_unread_text(reason)
    return RefusedRequest(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"the reader of texts {what}, {_NOTHING_LEARNED}; ask again in {retry_after_s} seconds",
        {"Retry-After": f"{retry_after_s}"},
    )


def start_text_readings(pad: PADConfig, served: str | None) -> TextReadings | None:
    """Start the reader that the settings ask for; None where they ask for none.

    It is started with the server and not with the first text: opening a base takes longer than a choice may
    take to be learned, and what cannot be opened is better known then.

    Args:
        pad: the settings.
        served: folder or name of the served base; None: the adapter's own.

    Raises:
        ValueError: the base is not on this machine.
    """
    if not pad.profile_reader:
        return None
    reader = BackgroundReader(_reader_settings(pad, served), _log_end)
    reader.start()
    return TextReadings(reader)


def _reader_settings(pad: PADConfig, served: str | None) -> ReaderSettings:
    config = read_config(pad.adapter)
    template = None
    if pad.engine != "shared" or pad.backbone or served is None:  # the base is another model
        served = str(reward_checkpoint(pad, config, weights=True))
    elif pad.chat_template:
        template = read_chat_template(
            pad.chat_template, "additional_config['pad']['chat_template']"
        )
    return ReaderSettings(
        base=served,
        adapter=pad.adapter,
        device=pad.profile_reader,
        chat_template=template,
        allow_mismatch=pad.allow_backbone_mismatch,
        conversations=pad.learn_from_conversations,
    )


def _log_end(why: str) -> None:
    logger.error("PAD: the reader of users' texts: %s", why)
