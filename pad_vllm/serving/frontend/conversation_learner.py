"""Learns from the conversations of users that a server has answered, where its operator switched that on.

In: chat requests that were admitted. Out: weights in the store, some seconds later, by the background reader.
No request waits for it. What is not learned is counted, and told to nobody else. Keeps no text.
"""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import Any

from pad_vllm.argument_names import PREFERENCE, USER, WEIGHTS
from pad_vllm.profiles.background_reader import (
    Answer,
    BackgroundReader,
    ReaderEnded,
    ReaderFull,
)
from pad_vllm.profiles.earlier_turns import conversation_key, earlier_turns
from pad_vllm.profiles.profile import UnknownUser
from pad_vllm.profiles.profile_cache import ProfileCache
from pad_vllm.profiles.profile_store import ProfileStore
from pad_vllm.vllm_api.prometheus_metrics import pad_metrics
from pad_vllm.vllm_api.vllm_names import init_logger

logger = init_logger(__name__)


class ConversationLearner:
    """Of one front end."""

    def __init__(self, reader: BackgroundReader, store: ProfileStore, cache: ProfileCache) -> None:
        """Learn nothing yet.

        Args:
            reader: that reads.
            store: where weights are written.
            cache: of the same users.
        """
        self._reader, self._store, self._cache = reader, store, cache

    def hear(self, request: Any) -> None:
        """Have the earlier turns of a request read, if it names a user and has any. One that says itself how
        it is to be guided teaches nothing, nor does one of a user who stated what they like.

        request: vLLM's ChatCompletionRequest, which was admitted.
        """
        arguments = request.vllm_xargs or {}
        if USER not in arguments or WEIGHTS in arguments or PREFERENCE in arguments:
            return
        turns = earlier_turns(request.messages)
        if turns is None:
            return
        user = arguments[USER]
        known = self._cache.weights(user)
        if known is not None and known.has_stated:
            return
        key = conversation_key(request.messages, self._store.salt)
        try:
            reading = self._reader.ask_last((user, key), {"conversation": turns})
        except ReaderFull:
            pad_metrics().count_unread_conversation("full")
            return
        user_id = None if known is None else known.user_id
        reading.add_done_callback(partial(self._learn, user, user_id, key))

    def _learn(self, user: str, user_id: int | None, key: str, reading: Future[Answer]) -> None:
        """Write what was read.

        Args:
            user: whose conversation it is.
            user_id: that the user had when the request came.
            key: of the conversation.
            reading: that has ended.
        """
        if reading.cancelled():  # a later request of the conversation is read in its place
            return
        try:
            answer = reading.result()
        except ReaderEnded:
            pad_metrics().count_unread_conversation("ended")
            return
        if "result" not in answer:
            pad_metrics().count_unread_conversation("refused" if "refused" in answer else "failed")
            if "failed" in answer:
                logger.error("PAD: a conversation was not read: %s", answer["failed"])
            return
        try:
            self._store.put_conversation(user, user_id, key, answer["result"]["weights"])
        except UnknownUser:  # deleted meanwhile
            return
        except Exception:  # such as a database that does not answer
            pad_metrics().count_unread_conversation("database")
            logger.exception("PAD: a conversation was read and not kept")
            return
        pad_metrics().count_read_conversation()
