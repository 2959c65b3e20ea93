"""`python -m pad_vllm.profiles.reader_program FD`: the process of a reader, at a low priority.

In: JSON messages on a connection that it inherits, first the ReaderSettings, then one question at a time.
Out: an answer to each, in order. background_reader.py starts it, and has the forms of messages. It ends when
the other side of the connection does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from pad_vllm.profiles.text_reader import ReaderSettings, TextReader, open_text_reader

_NICENESS = 5
"""Beside engines that keep all cores busy it gets a quarter of one: enough to read a choice of a few hundred
tokens within seconds on a base of 135M, which 10 is not."""

_MESSAGE_CHARS = 400


def serve(server: Connection) -> None:
    """Answer questions until the other side is gone, which raises EOFError or OSError."""
    try:
        reader = open_text_reader(ReaderSettings(**json.loads(server.recv_bytes())))
    except Exception as error:  # noqa: BLE001 the server says it, and goes on without
        _send(server, {"failed": _said(error)})
        return
    _send(server, {"opened": True})
    while True:
        while not server.poll(0) and _read_ahead(reader, server):
            pass
        _send(server, _answer(reader, json.loads(server.recv_bytes())))


def _answer(reader: TextReader, question: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if "sentence" in question:
            return {"result": asdict(reader.sentence(question["sentence"]))}
        if "conversation" in question:
            return {"result": asdict(reader.conversation(question["conversation"]))}
        return {"result": asdict(reader.choice(**question))}
    except ValueError as error:
        return {"refused": str(error)}
    except Exception as error:  # noqa: BLE001 such as memory: the next question is another one
        traceback.print_exc()
        return {"failed": _said(error)}


def _read_ahead(reader: TextReader, server: Connection) -> bool:
    """Until a question comes: it waits for one token. False: nothing is left to do."""
    try:
        return reader.read_ahead(partial(server.poll, 0))
    except Exception:  # noqa: BLE001 the first sentence meets it again, and says it
        return False


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS]


def _send(server: Connection, message: Mapping[str, Any]) -> None:
    server.send_bytes(json.dumps(message).encode())


def main() -> None:
    """Serve the connection that the command line names."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # of the server's terminal; the server ends this process
    os.nice(_NICENESS)
    from transformers.utils import logging

    logging.disable_progress_bar()
    with Connection(int(sys.argv[1])) as server, suppress(EOFError, OSError):
        serve(server)


if __name__ == "__main__":
    main()
