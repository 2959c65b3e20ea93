"""Profiles on disk: what was acknowledged is there, whoever writes, and nothing is left of who was deleted.

On SQLite, and on a PostgreSQL server where its programs are on this machine.
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("sqlalchemy")

from pad_vllm.profiles import database, profile_store
from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile import NamedChoice, UnknownUser
from pad_vllm.profiles.profile_store import ProfileStore
from pad_vllm.profiles.profile_weights import WeightLearner

DIMENSIONS = ("kind", "brief", "formal")
KIND = NamedChoice({"kind": 1.0, "brief": -1.0}, 1.0)
ODD_NAMES = (
    "алиса",
    "爱丽丝",
    "'; DROP TABLE pad_users; --",
    "a" * 128,
    "%s",
    "{user}",
    "a\N{ZERO WIDTH JOINER}b",
)


@pytest.fixture
def store(address):
    """Over an empty database."""
    database = Database(address)
    yield ProfileStore(database, WeightLearner(DIMENSIONS))
    database.close()


def again(address):
    """Another process's view of the same database."""
    return ProfileStore(Database(address), WeightLearner(DIMENSIONS))


def test_choices_make_weights_and_every_change_raises_the_version(store):
    profiles = [store.add_choice("alice", KIND) for _ in range(5)]

    versions = [profile.version for profile in profiles]
    assert versions == sorted(set(versions))
    assert [profile.num_choices for profile in profiles] == [1, 2, 3, 4, 5]
    last = profiles[-1]
    assert last.weights["kind"] == -last.weights["brief"] == 1
    assert last.weights["formal"] == 0
    low, high = last.intervals["kind"]
    assert low < 1 < high
    assert store.get("alice") == last


def test_what_is_stated_is_used_until_choices_say_more(store):
    stated = store.put_stated("alice", {"formal": 0.5})
    assert stated.weights == {"kind": 0.0, "brief": 0.0, "formal": 0.5}
    chosen = store.add_choice("alice", KIND)
    assert chosen.version > stated.version
    assert chosen.weights["kind"] > 0
    assert max(map(abs, chosen.weights.values())) == 0.5


def test_a_question_is_answered_once_and_by_its_own_user(store):
    first, second = store.propose_question("alice")
    question = store.add_question("alice", first, second)
    with pytest.raises(UnknownUser):
        store.answer_question("bob", question, 1.0)
    profile = store.answer_question("alice", question, 0.0, 2.0)
    with pytest.raises(UnknownUser):
        store.answer_question("alice", question, 0.0)
    assert profile.num_choices == 1
    assert sum(profile.weights[name] * (second[name] - first[name]) for name in DIMENSIONS) > 0


def test_a_user_who_was_only_asked_is_known_and_unguided(store):
    store.add_question("alice", {"kind": 1.0}, {"kind": -1.0})
    profile = store.get("alice")
    assert (profile.num_choices, set(profile.weights.values())) == (0, {0.0})


@pytest.mark.parametrize("name", ODD_NAMES)
def test_names_are_values_and_never_sql(store, name):
    store.add_choice(name, KIND)
    store.add_choice("other", KIND)
    assert store.get(name).user == name
    store.delete(name)
    assert store.get("other").num_choices == 1
    with pytest.raises(UnknownUser):
        store.get(name)


def test_deletion_deletes_everything(store, address):
    store.put_stated("alice", {"kind": 1.0})
    store.add_choice("alice", KIND)
    question = store.add_question("alice", {"kind": 1.0}, {})
    put(store)
    store.delete("alice")
    for call in (store.get, store.delete):
        with pytest.raises(UnknownUser):
            call("alice")
    with pytest.raises(UnknownUser):
        store.answer_question("alice", question, 1.0)
    with store._database.reading() as connection:
        for table in ("pad_users", "pad_choices", "pad_questions", "pad_conversations"):
            assert connection.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar() == 0
    assert store.add_choice("alice", KIND).num_choices == 1


def test_a_deleted_file_has_no_trace_of_the_name(tmp_path):
    store = again(str(tmp_path / "users.db"))
    store.add_choice("rumpelstiltskin", KIND)
    store.delete("rumpelstiltskin")
    store._database.close()
    with sqlite3.connect(tmp_path / "users.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert all(b"rumpelstiltskin" not in one.read_bytes() for one in tmp_path.iterdir())


@pytest.mark.parametrize(
    "choice",
    [
        NamedChoice({"kind": math.nan}, 1.0),
        NamedChoice({"kind": math.inf}, 1.0),
        NamedChoice({"kind": 1.0}, 1.5),
        NamedChoice({"kind": 1.0}, 1.0, 0.0),
        NamedChoice({"kind": 1.0}, 1.0, 1e9),
    ],
)
def test_numbers_that_say_nothing_are_refused_and_not_written(store, choice):
    with pytest.raises(ValueError, match="accepted"):
        store.add_choice("alice", choice)
    with pytest.raises(UnknownUser):
        store.get("alice")


def test_old_choices_and_questions_make_room(store, monkeypatch):
    monkeypatch.setattr(profile_store, "MAX_CHOICES", 3)
    monkeypatch.setattr(profile_store, "MAX_QUESTIONS", 2)
    asked = [store.add_question("alice", {"kind": 1.0}, {}) for _ in range(3)]
    for _ in range(5):
        profile = store.add_choice("alice", KIND)
    assert profile.num_choices == 3
    with pytest.raises(UnknownUser):
        store.answer_question("alice", asked[0], 1.0)
    assert store.answer_question("alice", asked[2], 1.0).num_choices == 3


def test_an_adapter_with_other_dimensions_reads_what_it_knows(store, address):
    store.add_choice("alice", KIND)
    other = ProfileStore(Database(address), WeightLearner(("warm", "kind")))
    profile = other.add_choice("alice", NamedChoice({"warm": 1.0}, 0.5))
    assert profile.num_choices == 2
    assert profile.weights["kind"] == 1


def test_threads_and_connections_lose_no_choice(store, address):
    stores = [store, again(address), again(address)]
    jobs = [(stores[n % 3], f"user {n % 4}") for n in range(60)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda job: job[0].add_choice(job[1], KIND), jobs))
    profiles = [store.get(f"user {n}") for n in range(4)]
    assert [profile.num_choices for profile in profiles] == [15] * 4
    assert all(p.version == 15 for p in profiles)


POSTER = """
import sys
from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile import NamedChoice
from pad_vllm.profiles.profile_store import ProfileStore
from pad_vllm.profiles.profile_weights import WeightLearner
store = ProfileStore(Database(sys.argv[1]), WeightLearner(("kind", "brief", "formal")))
while True:
    store.add_choice("alice", NamedChoice({"kind": 1.0}, 1.0))
    print("acknowledged", flush=True)
"""


def test_a_killed_process_loses_no_acknowledged_choice(store, address):
    killed, acknowledged = 0, 0
    for enough in (1, 12):
        process = subprocess.Popen(
            [sys.executable, "-c", POSTER, address], stdout=subprocess.PIPE, text=True
        )
        lines = list(itertools.islice(process.stdout, enough))
        os.kill(process.pid, signal.SIGKILL)
        lines += process.stdout.readlines()  # what it said before it was killed
        process.wait()
        killed, acknowledged = killed + 1, acknowledged + len(lines)
        # At most the one that was being written besides.
        assert acknowledged <= store.get("alice").num_choices <= acknowledged + killed
    assert store.add_choice("alice", KIND).version > acknowledged


def test_a_database_of_another_version_is_refused(store, address):
    with store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE pad_schema SET version = 99")
    with pytest.raises(ValueError, match="version 99.*accepted: the same"):
        Database(address)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("postgresql://me:secret@host/users", "with a password"),
        ("mysql://host/users", "mysql://"),
        ("", "accepted: a file"),
        ("/nowhere/at/all/users.db", "there is no folder"),
    ],
)
def test_an_address_that_is_not_accepted_says_what_is(address, said):
    with pytest.raises(ValueError, match=said) as refused:
        Database(address)
    assert "secret" not in str(refused.value)


def test_a_choice_takes_milliseconds(store):
    begin = time.monotonic()
    for _ in range(20):
        store.add_choice("alice", KIND)
    assert (time.monotonic() - begin) / 20 < 1


TAUGHT = {"kind": 0.4, "brief": -0.2, "formal": 0.0}


def put(store, key="a", taught=TAUGHT, user="alice", known_id=None):
    store.put_conversation(user, known_id, key, taught)
    return store.get(user)


def test_a_conversation_is_learned_from_once_and_replaced_by_its_later_reading(store):
    first = put(store)
    assert first.weights == {"kind": 0.2, "brief": -0.1, "formal": 0.0}
    assert (first.num_conversations, first.num_choices, first.stated) == (1, 0, None)
    longer = put(store, taught={"kind": 0.8})
    assert (longer.weights["kind"], longer.num_conversations) == (0.4, 1)
    assert longer.version > first.version
    other = put(store, "b", {"kind": 0.1})
    assert (other.weights["kind"], other.num_conversations) == (0.3, 2)
    assert put(store, user="bob").num_conversations == 1
    assert [p.num_conversations for p in store.changed_since(0, 9)] == [1, 2]


def test_the_newest_conversations_are_kept(store, monkeypatch):
    monkeypatch.setattr(profile_store, "MAX_CONVERSATIONS", 3)
    for number in range(4):
        put(store, str(number), {"kind": 0.0})
    put(store, "1", {"kind": 0.4})  # read again: now the newest
    put(store, "5", {"kind": 0.4})
    assert put(store, "6", {"kind": 0.4}).num_conversations == 3
    assert store.get("alice").weights["kind"] == 0.3


def test_what_is_stated_wins_over_conversations(store):
    put(store)
    stated = store.put_stated("alice", {"formal": 0.5})
    assert stated.weights == {"kind": 0.0, "brief": 0.0, "formal": 0.5}
    assert put(store, "b").weights == stated.weights


def test_a_conversation_of_a_user_who_was_deleted_meanwhile_is_not_kept(store):
    before = put(store).user_id
    store.delete("alice")
    with store._database.reading() as connection:
        count = connection.exec_driver_sql("SELECT count(*) FROM pad_conversations").scalar()
        assert count == 0
    with pytest.raises(UnknownUser):
        put(store, known_id=before)
    with pytest.raises(UnknownUser):
        store.get("alice")
    again_known = put(store)
    with pytest.raises(UnknownUser):
        put(store, known_id=before)
    assert put(store, "b", known_id=again_known.user_id).num_conversations == 2


def test_every_process_has_the_salt_of_the_database_and_no_other(store, address, tmp_path):
    assert again(address).salt == store.salt
    assert again(str(tmp_path / "other.db")).salt != store.salt
    assert len(store.salt) == 64


def as_version_1(store):
    """What the first version wrote."""
    with store._database.writing() as connection:
        for statement in (
            "DROP TABLE pad_conversations",
            "DROP TABLE pad_salt",
            "UPDATE pad_schema SET version = 1",
        ):
            connection.exec_driver_sql(statement)


def test_a_database_of_version_1_is_upgraded_and_loses_nothing(store, address):
    before = store.add_choice("alice", KIND)
    as_version_1(store)
    upgraded = again(address)
    assert upgraded.get("alice") == before
    assert put(upgraded).num_conversations == 1
    with upgraded._database.reading() as connection:
        assert connection.exec_driver_sql("SELECT version FROM pad_schema").scalar() == 2
    assert again(address).salt == upgraded.salt


def test_an_upgrade_that_fails_leaves_version_1(store, address, monkeypatch):
    as_version_1(store)
    monkeypatch.setattr(database.secrets, "token_hex", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Database(address)
    with store._database.reading() as connection:
        assert connection.exec_driver_sql("SELECT version FROM pad_schema").scalar() == 1
        tables = profile_store.sa.inspect(connection).get_table_names()
    assert "pad_conversations" not in tables
