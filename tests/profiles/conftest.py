"""Databases for tests: a file, and a PostgreSQL server of this test run's own where its programs are here."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

_numbers = itertools.count()


def _programs():
    """Folder of initdb and postgres; None without a server."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    folders += [Path(found).resolve().parent] if found else []
    return next((one for one in folders if (one / "postgres").exists()), None)


def _as_other_user():
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    import pwd

    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("PostgreSQL does not run as root, and there is no other user")


@pytest.fixture(scope="session")
def postgresql():
    """The address of a server, as far as the database's name."""
    pytest.importorskip("psycopg")
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    user = _as_other_user()
    folder = Path(
        tempfile.mkdtemp(prefix="pad_postgresql_", dir="/tmp")
    )  # its sockets need a short path
    if user:
        os.chown(folder, user["user"], user["group"])
    data = folder / "data"
    make = [programs / "initdb", "-D", data, "-U", "pad", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(list(map(str, make)), check=True, capture_output=True, cwd=folder, **user)
    settings = ("listen_addresses=", f"unix_socket_directories={folder}")
    start = [programs / "postgres", "-D", data, *(part for one in settings for part in ("-c", one))]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(list(map(str, start)), stdout=log, stderr=log, cwd=folder, **user)
    try:
        yield _when_up(f"postgresql://pad@/{{}}?host={folder}", server, folder / "log")
    finally:
        server.send_signal(signal.SIGQUIT)  # PostgreSQL's immediate shutdown
        server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _when_up(address, server, log):
    """The address, as soon as the server answers there."""
    begin = time.monotonic()
    while not _answers(address.format("postgres")):
        assert server.poll() is None, log.read_text("utf-8", errors="replace")
        assert time.monotonic() < begin + 60
        time.sleep(0.1)
    return address


def _answers(address):
    import psycopg

    try:
        psycopg.connect(address).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture
def new_postgresql(postgresql):
    """The address of an empty database."""
    import psycopg

    name = f"users{next(_numbers)}"
    admin = postgresql.format("postgres")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgresql.format(name)


@pytest.fixture(params=["file", "PostgreSQL"])
def address(request, tmp_path):
    """Of an empty database."""
    if request.param == "file":
        return str(tmp_path / "users.db")
    return request.getfixturevalue("new_postgresql")
