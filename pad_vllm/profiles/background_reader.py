"""The one process that reads texts for a server, and the queue in front of it.

In: questions, as JSON. Out: a Future of the answer of each, in order. A thread hands one question at a time
to the process (reader_program.py), so nobody who asks waits for it. Conversations, for whose reading nobody
waits, have a queue of their own, and are read where no other question is there. The process is started again
when it ended, and ends with the server. Knows no HTTP.

    question    {"messages": [...], "chosen": "...", "rejected": "..."}, {"sentence": "..."}, or
                {"conversation": [...]}
    answer      {"result": fields of a NamedChoice, a SentenceReading or a ConversationReading},
                {"refused": why}, or {"failed": why}
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict
from multiprocessing import Pipe
from types import TracebackType
from typing import Any

from pad_vllm.profiles.text_reader import ReaderSettings

MAX_WAITING = 16
"""Questions that wait. Each takes a second or so, and whoever asks waits for less than a minute."""

MAX_CONVERSATIONS = 16
"""Conversations that wait."""

RESTART_S = 60.0
"""Seconds from one start to the next at least, where a process ended by itself."""

_OPEN_S, _READ_S = 1800.0, 300.0  # a process that takes longer is ended
_LOOK_S = 1.0  # between two looks whether an idle process lives
_END_S = 5.0  # from the end of its connection to its own
_MAX_THREADS = 4

Question = Mapping[str, Any]
Answer = dict[str, Any]
_Asked = tuple[Question, Future[Answer]]


class ReaderFull(RuntimeError):
    """Too many questions wait already."""


class ReaderEnded(RuntimeError):
    """The process is not there; the message says why, for the operator."""


class BackgroundReader:
    """The reader of one server. Thread-safe."""

    def __init__(
        self,
        settings: ReaderSettings,
        on_failure: Callable[[str], None],
        program: Sequence[str] = (sys.executable, "-m", "pad_vllm.profiles.reader_program"),
    ) -> None:
        """Nothing is started.

        Args:
            settings: what the process opens.
            on_failure: told why the process ended, in a thread.
            program: the command line of the process, without the connection.
        """
        self._settings, self._on_failure, self._program = settings, on_failure, tuple(program)
        self._waiting: deque[_Asked] = deque()
        self._conversations: dict[Hashable, _Asked] = {}  # in the order in which they are read
        self._queues = threading.Condition()
        self._process: _ReaderProcess | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pad-reader", daemon=True)

    def start(self) -> None:
        """Start the process, without waiting for it: it opens the base meanwhile."""
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        """End the process, and refuse what waits."""
        self._stopped.set()
        if self._process is not None:
            self._process.stop()
        self._thread.join()

    @property
    def runs(self) -> bool:
        """Whether the process lives, also while it opens the base."""
        process = self._process
        return process is not None and process.lives

    def ask(self, question: Question) -> Future[Answer]:
        """The answer to a question, later; cancel it when nobody waits any more.

        Raises ReaderFull; the Future raises ReaderEnded where the process ends before it has answered.
        """
        future: Future[Answer] = Future()
        if not self.runs:
            future.set_exception(ReaderEnded("it is not there"))
            return future
        with self._queues:
            if len(self._waiting) >= MAX_WAITING:
                raise ReaderFull(f"{MAX_WAITING} texts wait to be read")
            self._waiting.append((question, future))
            self._queues.notify()
        return future

    def ask_last(self, name: Hashable, question: Question) -> Future[Answer]:
        """The answer to a question for which nobody waits, after all others. One that waits under the same
        name is cancelled, and this one has its place.

        Args:
            name: of the conversation.
            question: what is read.

        Raises:
            ReaderFull: others wait already. The Future raises ReaderEnded as that of `ask` does.
        """
        future: Future[Answer] = Future()
        if not self.runs:
            future.set_exception(ReaderEnded("it is not there"))
            return future
        with self._queues:
            earlier = self._conversations.get(name)
            if earlier is None and len(self._conversations) >= MAX_CONVERSATIONS:
                raise ReaderFull(f"{MAX_CONVERSATIONS} conversations wait to be read")
            self._conversations[name] = (question, future)
            self._queues.notify()
        if earlier is not None:
            earlier[1].cancel()
        return future

    def _next(self) -> _Asked | None:
        """The next question, taken from its queue; None where none came for a while."""
        with self._queues:
            self._queues.wait_for(lambda: self._waiting or self._conversations, _LOOK_S)
            if self._waiting:
                return self._waiting.popleft()
            if self._conversations:
                return self._conversations.pop(next(iter(self._conversations)))
        return None

    def _run(self) -> None:
        may_start = True
        while may_start and not self._stopped.is_set():
            begin = time.monotonic()
            try:
                self._serve()
            except (ReaderEnded, OSError) as error:  # an OSError: no process can be started
                may_start = not isinstance(error, _CannotOpen)
                if not self._stopped.is_set():
                    self._on_failure(str(error))
            self._refuse_waiting()
            self._stopped.wait(begin + RESTART_S - time.monotonic())

    def _serve(self) -> None:
        """Start a process and have it answer. Raises ReaderEnded."""
        with _ReaderProcess(self._program) as process:
            self._process = process
            if self._stopped.is_set():  # meanwhile, by whom this process was not seen
                return
            opened = process.ask(asdict(self._settings), _OPEN_S)
            if "failed" in opened:
                raise _CannotOpen(f"it cannot open {self._settings.base}: {opened['failed']}")
            while not self._stopped.is_set():
                if (asked := self._next()) is not None:
                    _answer(process, *asked)
                process.require_alive()

    def _refuse_waiting(self) -> None:
        with self._queues:
            refused = [*self._waiting, *self._conversations.values()]
            self._waiting.clear()
            self._conversations.clear()
        for _, future in refused:
            if future.set_running_or_notify_cancel():
                future.set_exception(ReaderEnded("it ended"))


def _answer(process: _ReaderProcess, question: Question, future: Future[Answer]) -> None:
    if not future.set_running_or_notify_cancel():  # whoever asked is gone
        return
    try:
        future.set_result(process.ask(question, _READ_S))
    except ReaderEnded as error:
        future.set_exception(error)
        raise


class _CannotOpen(ReaderEnded):
    """Another start would end the same way."""


class _ReaderProcess:
    """One process, from its start to its end."""

    def __init__(self, program: Sequence[str]) -> None:
        self._connection, theirs = Pipe()
        num_threads = max(1, min(_MAX_THREADS, (os.cpu_count() or 1) // 4))
        with theirs:
            self._process = subprocess.Popen(
                [*program, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": str(num_threads)},
            )

    def __enter__(self) -> _ReaderProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self._connection.close()

    @property
    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(self, message: Question, patience_s: float) -> Answer:
        """The answer to a message.

        Args:
            message: as JSON.
            patience_s: seconds until the process counts as hanging.

        Raises:
            ReaderEnded: there is none.
        """
        try:
            self._connection.send_bytes(json.dumps(message).encode())
            if not self._connection.poll(patience_s):
                raise ReaderEnded(f"it gave no answer in {patience_s:.0f} seconds, and was ended")
            answer: Answer = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
            self.stop()
            raise ReaderEnded(f"it ended with code {self._process.returncode}") from None
        return answer

    def require_alive(self) -> None:
        """Raises ReaderEnded where it ended by itself."""
        if not self.lives:
            raise ReaderEnded(f"it ended with code {self._process.returncode}")

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
