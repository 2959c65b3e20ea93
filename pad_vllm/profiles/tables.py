"""Tables of the database of users.

    users       name, version of the weights, number of its evidence; what was stated, weights, intervals
    choices     what each act said: differences of weights or of features by dimension. No text
    questions   the weights that guided the two answers of a question that waits for its choice
    conversations   weights that a conversation teaches, by a key that is made of its first message. No text
    salt        one row: what goes into these keys beside the text
    changes     one row: how many changes there were. Readers ask it whether anything is new
    deletions   ids of users who are gone, so that other processes forget them; nothing of the person

Dimensions are kept by name, so that another adapter may read the database. Imported with the extra only.
"""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = 2
"""Version 1 had neither conversations nor salt; database.py makes a 2 of it."""

METADATA = sa.MetaData()

schema = sa.Table("pad_schema", METADATA, sa.Column("version", sa.Integer, nullable=False))

_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite counts up INTEGER only

users = sa.Table(
    "pad_users",
    METADATA,
    sa.Column("id", _KEY, primary_key=True, autoincrement=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("evidence", sa.Integer, nullable=False),  # how many things changed what is known
    sa.Column("version", sa.Integer, nullable=False),  # the evidence that the weights are from
    sa.Column("stated", sa.JSON(none_as_null=True)),
    sa.Column("weights", sa.JSON, nullable=False),
    sa.Column("intervals", sa.JSON, nullable=False),
    sa.Column("choices", sa.Integer, nullable=False),
    sa.Column("change", sa.BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,  # an id is never that of a deleted user
)


def _user() -> sa.Column[int]:
    return sa.Column(
        "user_id", sa.ForeignKey(users.c.id, ondelete="CASCADE"), nullable=False, index=True
    )


choices = sa.Table(
    "pad_choices",
    METADATA,
    sa.Column("id", _KEY, primary_key=True, autoincrement=True),
    _user(),
    sa.Column("x", sa.JSON, nullable=False),
    sa.Column("outcome", sa.Double, nullable=False),
    sa.Column("strength", sa.Double, nullable=False),
    sa.Column("length", sa.Double),  # of given texts; null: x are weights
)

questions = sa.Table(
    "pad_questions",
    METADATA,
    sa.Column("number", _KEY, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    _user(),
    sa.Column("first", sa.JSON, nullable=False),
    sa.Column("second", sa.JSON, nullable=False),
)

conversations = sa.Table(
    "pad_conversations",
    METADATA,
    sa.Column("id", _KEY, primary_key=True, autoincrement=True),
    _user(),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("x", sa.JSON, nullable=False),
    sa.UniqueConstraint("user_id", "key"),
)

salt = sa.Table("pad_salt", METADATA, sa.Column("value", sa.Text, nullable=False))

changes = sa.Table(
    "pad_changes",
    METADATA,
    sa.Column("number", sa.BigInteger, nullable=False),
)

deletions = sa.Table(
    "pad_deletions",
    METADATA,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("user_id", sa.BigInteger, nullable=False),
)
