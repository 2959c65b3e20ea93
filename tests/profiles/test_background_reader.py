"""The queue in front of a reader's process, with a program in its place that does as it is told."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import CancelledError

import pytest

from pad_vllm.profiles import background_reader
from pad_vllm.profiles.background_reader import BackgroundReader, ReaderEnded, ReaderFull
from pad_vllm.profiles.text_reader import ReaderSettings

PROGRAM = """
import json, os, sys, time
from multiprocessing.connection import Connection

def main():
    server = Connection(int(sys.argv[1]))
    settings = json.loads(server.recv_bytes())
    if settings["base"] == "nothing":
        server.send_bytes(b'{"failed": "ValueError: no such base"}')
        return
    server.send_bytes(b'{"opened": true}')
    while True:
        question = json.loads(server.recv_bytes())
        if "exit" in question:
            os._exit(question["exit"])
        time.sleep(question.get("sleep", 0))
        answer = {"result": question, "settings": settings, "pid": os.getpid()}
        server.send_bytes(json.dumps(answer).encode())

try:
    main()
except EOFError:
    pass
"""
SETTINGS = ReaderSettings("base", "adapter", "cpu")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A reader that runs; `failures` has why it ended."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    monkeypatch.setattr(background_reader, "RESTART_S", 0.5)
    monkeypatch.setattr(background_reader, "_LOOK_S", 0.05)
    made = []

    def make_reader(settings=SETTINGS):
        failures = []
        reader = BackgroundReader(settings, failures.append, (sys.executable, str(script)))
        reader.failures = failures
        reader.start()
        made.append(reader)
        until(lambda: reader.runs or failures)
        return reader

    yield make_reader
    for reader in made:
        reader.stop()


def until(happened, within=20):
    begin = time.monotonic()
    while not happened():
        assert time.monotonic() < begin + within
        time.sleep(0.01)


def ask(reader, **question):
    return reader.ask(question)


def test_every_question_gets_its_own_answer_in_order(make):
    reader = make()
    asked = [ask(reader, number=number, text="\ud83d\ude00 é\u2028") for number in range(10)]
    answers = [one.result(20) for one in asked]
    assert [answer["result"]["number"] for answer in answers] == list(range(10))
    assert answers[0]["result"]["text"] == "\U0001f600 é\u2028"
    assert answers[0]["settings"]["adapter"] == "adapter"
    assert len({answer["pid"] for answer in answers}) == 1
    assert reader.failures == []


def test_asking_waits_for_nothing_and_a_full_queue_refuses(make, monkeypatch):
    monkeypatch.setattr(background_reader, "MAX_WAITING", 3)
    reader = make()
    slow = ask(reader, sleep=1)
    until(slow.running)
    begin = time.monotonic()
    waiting = [ask(reader, number=number) for number in range(3)]
    with pytest.raises(ReaderFull, match="3 texts wait"):
        ask(reader)
    assert time.monotonic() < begin + 0.5
    assert [one.result(20)["result"]["number"] for one in waiting] == [0, 1, 2]
    assert ask(reader, number=4).result(20)["result"] == {"number": 4}


def test_what_nobody_waits_for_any_more_is_not_read(make):
    reader = make()
    slow = ask(reader, sleep=0.3)
    given_up, next_one = ask(reader, exit=1), ask(reader, number=1)
    assert given_up.cancel()
    assert next_one.result(20)["result"] == {"number": 1}
    assert slow.result(20)
    with pytest.raises(CancelledError):
        given_up.result()


def test_a_process_that_ends_is_told_refused_and_started_again(make):
    reader = make()
    first = ask(reader).result(20)["pid"]
    ending, waiting = ask(reader, exit=7), ask(reader)
    for one in (ending, waiting):
        with pytest.raises(ReaderEnded):
            one.result(20)
    assert reader.failures == ["it ended with code 7"]
    until(lambda: reader.runs)
    assert ask(reader).result(20)["pid"] != first


def test_one_that_is_killed_while_it_has_nothing_to_do_is_noticed(make):
    reader = make()
    os.kill(ask(reader).result(20)["pid"], signal.SIGKILL)
    until(lambda: not reader.runs)
    with pytest.raises(ReaderEnded):
        ask(reader).result(20)
    until(lambda: reader.failures == ["it ended with code -9"])
    until(lambda: reader.runs)
    assert ask(reader, number=1).result(20)["result"] == {"number": 1}


def test_one_that_hangs_is_ended(make, monkeypatch):
    reader = make()
    ask(reader).result(20)
    monkeypatch.setattr(background_reader, "_READ_S", 0.2)
    with pytest.raises(ReaderEnded):
        ask(reader, sleep=60).result(20)
    until(lambda: reader.failures)
    assert "no answer in 0 seconds" in reader.failures[0]
    until(lambda: reader.runs)


def test_a_base_that_cannot_be_opened_is_said_once(make):
    reader = make(ReaderSettings("nothing", "adapter", "cpu"))
    until(lambda: reader.failures)
    time.sleep(1)
    assert reader.failures == ["it cannot open nothing: ValueError: no such base"]
    assert not reader.runs
    with pytest.raises(ReaderEnded):
        ask(reader).result(20)


def test_it_ends_with_the_server(make):
    reader = make()
    process = ask(reader).result(20)["pid"]
    late = ask(reader, sleep=60)
    until(late.running)
    reader.stop()
    assert not reader.runs
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    with pytest.raises(ReaderEnded):
        late.result(1)
    assert reader.failures == []


def test_the_process_ends_where_the_server_was_killed(make):
    reader = make()
    process = ask(reader).result(20)["pid"]
    reader._process._connection.close()  # as its end closes it
    until(lambda: not reader._process.lives)
    assert process


def test_conversations_are_read_after_every_other_question(make):
    reader, ended = make(), []
    slow = ask(reader, sleep=0.5)
    until(slow.running)
    asked = [reader.ask_last(n, {"conversation": n}) for n in range(3)]
    asked += [ask(reader, number=n) for n in range(3)]
    for name, future in zip("ABCabc", asked, strict=True):
        future.add_done_callback(lambda _, name=name: ended.append(name))
    for future in asked:
        future.result(20)
    assert "".join(ended) == "abcABC"


def test_a_later_request_of_a_conversation_has_the_place_of_the_earlier_one(make, monkeypatch):
    monkeypatch.setattr(background_reader, "MAX_CONVERSATIONS", 2)
    reader, ended = make(), []
    slow = ask(reader, sleep=0.5)
    until(slow.running)
    first, second = (reader.ask_last(name, {"turns": 1}) for name in "ab")
    with pytest.raises(ReaderFull, match="2 conversations wait"):
        reader.ask_last("c", {})
    longer = reader.ask_last("a", {"turns": 2})
    for name, future in (("a", longer), ("b", second)):
        future.add_done_callback(lambda _, name=name: ended.append(name))
    assert first.cancelled()
    assert second.result(20)["result"] == {"turns": 1}
    assert longer.result(20)["result"] == {"turns": 2}
    assert ended == ["a", "b"]
    assert reader.ask_last("c", {}).result(20)


def test_conversations_of_a_process_that_ends_are_refused(make):
    reader = make()
    ending = ask(reader, exit=7)
    waiting = reader.ask_last("a", {})
    for one in (ending, waiting):
        with pytest.raises(ReaderEnded):
            one.result(20)
    until(lambda: not reader.runs)
    late = reader.ask_last("a", {})
    with pytest.raises(ReaderEnded):
        late.result(20)
