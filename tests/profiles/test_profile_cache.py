"""What requests look up: this process's changes at once, other processes' at the next look."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("sqlalchemy")

from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile_cache import ProfileCache
from pad_vllm.profiles.profile_store import ProfileStore
from pad_vllm.profiles.profile_weights import WeightLearner


class Process:
    """A store and a cache of one process."""

    def __init__(self, address, **cache):
        self.errors = []
        self.store = ProfileStore(
            Database(address),
            WeightLearner(("kind", "brief")),
            self.on_change,
        )
        self.cache = ProfileCache(self.store, self.errors.append, **cache)

    def on_change(self, profile):
        self.cache.add(profile)

    def text(self, user):
        found = self.cache.weights(user)
        return found and found.pad_weights


def test_two_processes_on_one_database_agree_within_a_second(address):
    one, two = (Process(address, poll_s=0.1) for _ in range(2))
    for process in (one, two):
        process.cache.start()
    one.store.put_stated("alice", {"kind": 1.0})
    assert one.text("alice") == "kind=1.0"
    assert soon(lambda: two.text("alice") == "kind=1.0")
    two.store.put_stated("alice", {"brief": -0.5})
    assert soon(lambda: one.text("alice") == "brief=-0.5")
    assert one.cache.weights("alice") == two.cache.weights("alice")
    two.store.delete("alice")
    assert soon(lambda: one.text("alice") is None)
    two.store.put_stated("alice", {"kind": 0.25})  # another one, whose versions begin anew
    assert soon(lambda: one.text("alice") == "kind=0.25")
    for process in (one, two):
        process.cache.stop()
        assert process.errors == []


def soon(holds, within=5):
    begin = time.monotonic()
    while not holds():
        if time.monotonic() > begin + within:
            return False
        time.sleep(0.02)
    return True


def test_a_server_that_starts_knows_all_and_reads_nothing_for_unknown_users(tmp_path):
    address = str(tmp_path / "users.db")
    Process(address).store.put_stated("alice", {"kind": 1.0})
    process = Process(address)
    process.cache.refresh()
    process.store.get = None  # a request that read the database would fail
    assert process.text("alice") == "kind=1.0"
    assert process.text("nobody") is None


def test_users_beyond_the_bound_are_read_when_they_are_asked_for(tmp_path):
    process = Process(str(tmp_path / "users.db"), max_users=2)
    process.cache.refresh()
    for name in ("a", "b", "c"):
        process.store.put_stated(name, {"kind": 1.0})
    assert len(process.cache._known) == 2
    assert [process.text(name) for name in ("a", "b", "c", "nobody")] == ["kind=1.0"] * 3 + [None]


def test_an_older_version_never_replaces_a_newer_one(tmp_path):
    process = Process(str(tmp_path / "users.db"))
    old = process.store.put_stated("alice", {"kind": 1.0})
    process.store.put_stated("alice", {"kind": 2.0})
    assert process.cache.add(old).pad_weights == "kind=2.0"


def test_a_read_that_began_before_a_deletion_brings_nobody_back(tmp_path):
    process = Process(str(tmp_path / "users.db"))
    process.cache.refresh()
    read = process.store.put_stated("alice", {"kind": 1.0})
    process.store.delete("alice")
    process.cache.refresh()
    process.cache.add(read)
    assert process.text("alice") is None


def test_a_lookup_takes_microseconds(tmp_path):
    process = Process(str(tmp_path / "users.db"))
    process.cache.refresh()
    process.store.put_stated("alice", {"kind": 1.0})
    begin = time.perf_counter()
    for _ in range(1000):
        process.cache.weights("alice")
    assert (time.perf_counter() - begin) / 1000 < 1e-3


def test_a_database_that_fails_is_told_of_and_asked_again(tmp_path):
    process = Process(str(tmp_path / "users.db"), poll_s=0.01)
    process.cache.start()
    works, process.store.change_count = process.store.change_count, None
    assert soon(lambda: process.errors)
    process.store.change_count = works
    Process(str(tmp_path / "users.db")).store.put_stated("alice", {"kind": 1.0})
    assert soon(lambda: process.text("alice") == "kind=1.0")
    process.cache.stop()
