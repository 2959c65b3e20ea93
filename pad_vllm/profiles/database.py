"""The database of users: a file (SQLite) or a PostgreSQL server.

In: an address. Out: a SQLAlchemy engine whose tables are there. SQLite is in WAL mode with synchronous FULL:
a transaction that was committed is on disk, whatever happens to the process or the machine. Needs the extra
`profiles`. Knows the tables, not what is in them.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import sqlalchemy as sa
    from sqlalchemy import event
    from sqlalchemy.exc import ArgumentError
except ImportError as error:
    raise ImportError(
        "profiles need SQLAlchemy, which is not installed; pip install 'pad-vllm[profiles]'"
    ) from error

from pad_vllm.profiles.tables import METADATA, SCHEMA_VERSION, changes, salt, schema
from pad_vllm.wording import short_repr

BUSY_TIMEOUT_S = 10.0
"""How long a write waits for another process's."""

_POSTGRESQL = ("postgresql", "postgresql+psycopg")
_ACCEPTED = (
    "a file such as users.db (SQLite), or postgresql://USER@HOST/DATABASE without a password, which comes "
    "from PGPASSWORD or ~/.pgpass"
)
_SCHEMA_LOCK = 7_370_001  # any number: of PostgreSQL's advisory locks
_WRITING = "pad_writes"
_WITHOUT_CONVERSATIONS = 1
_SALT_BYTES = 32


class Database:
    """One database. May be used by several threads."""

    def __init__(self, address: str) -> None:
        """Connect, and create the tables where there are none. A database of an earlier version becomes one
        of this version, which earlier versions of pad_vllm do not open.

        Args:
            address: a file, or `postgresql://...`.

        Raises:
            ValueError: the address is no accepted one, or a database of another version.
        """
        self._engine = _engine(address)
        with self.writing() as connection:
            _create_tables(connection)
            self.salt = _salt(connection)
            """Text that keys of conversations are made with; of this database alone."""

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that reads."""
        with self._engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes; what it did is on disk when the block has ended."""
        with (
            self._engine.connect().execution_options(**{_WRITING: True}) as connection,
            connection.begin(),
        ):
            yield connection

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()


def require_accepted_address(address: str) -> None:
    """Raises ValueError for an address of no accepted kind, or one with a password: settings are logged."""
    _url(address)


def _url(address: str) -> sa.URL:
    if "://" not in address:
        if not address.strip() or address.strip() == ":memory:":
            raise _refused(address)
        return sa.URL.create("sqlite", database=str(Path(address).expanduser().absolute()))
    try:
        url = sa.make_url(address)
    except ArgumentError:
        raise _refused("an address that cannot be read") from None
    if url.drivername not in _POSTGRESQL:
        raise _refused(f"{url.drivername}://...")
    if url.password is not None or "password" in url.query:
        raise _refused(f"{url.drivername}://... with a password")
    return url.set(drivername="postgresql+psycopg")


def _refused(found: str) -> ValueError:
    return ValueError(f"profiles is {short_repr(found)}; accepted: {_ACCEPTED}. Correct it.")


def _engine(address: str) -> sa.Engine:
    url = _url(address)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    try:
        # A connection that the server closed is noticed before it is used.
        return sa.create_engine(
            url, pool_pre_ping=True, hide_parameters=True, connect_args={"connect_timeout": 10}
        )
    except ImportError as error:
        raise ValueError(
            "PostgreSQL needs psycopg, which is not installed; pip install 'pad-vllm[profiles]'"
        ) from error


def _sqlite(url: sa.URL) -> sa.Engine:
    path = Path(str(url.database))
    if not path.parent.is_dir():
        raise ValueError(
            f"profiles is {short_repr(str(path))}, and there is no folder {path.parent}; accepted: a file "
            "in a folder that exists. Create it."
        )
    path.touch(
        mode=0o600
    )  # it holds what people like; SQLite's other files get the mode of this one
    engine = sa.create_engine(
        url,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None},
    )
    event.listen(engine, "connect", _set_up_connection)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up_connection(connection: sqlite3.Connection, _record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: sa.Connection) -> None:
    # A transaction that begins to write in its middle may fail although it waited: another wrote meanwhile.
    writes = connection.get_execution_options().get(_WRITING)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _create_tables(connection: sa.Connection) -> None:
    if connection.dialect.name == "postgresql":  # two processes may start at once
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
    METADATA.create_all(connection)
    version = connection.scalar(sa.select(schema.c.version))
    if version is None:
        connection.execute(sa.insert(schema).values(version=SCHEMA_VERSION))
        connection.execute(sa.insert(changes).values(number=0))
    elif version == _WITHOUT_CONVERSATIONS:  # their tables were made above
        connection.execute(sa.update(schema).values(version=SCHEMA_VERSION))
    elif version != SCHEMA_VERSION:
        raise ValueError(
            f"the database of profiles has version {version}, and this pad_vllm knows version "
            f"{SCHEMA_VERSION}; accepted: the same one. Install the pad_vllm that wrote it, or name another "
            "database."
        )


def _salt(connection: sa.Connection) -> str:
    found = connection.scalar(sa.select(salt.c.value))
    if found is None:
        found = secrets.token_hex(_SALT_BYTES)
        connection.execute(sa.insert(salt).values(value=found))
    return str(found)
