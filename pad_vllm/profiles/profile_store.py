"""Reads and writes profiles: what a call of ProfileStore returned is on disk.

In: names of users, choices, stated weights. Out: Profiles. A choice is written in one transaction and learned
from after it, so that no write waits for a fit; weights from less evidence never replace those from more.
Every call may wait for the disk, so none belongs on an event loop. May be used by several threads, and the
database by several processes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

import sqlalchemy as sa

from pad_vllm.profiles.database import Database
from pad_vllm.profiles.profile import (
    NamedChoice,
    Profile,
    ProfileEvidence,
    UnknownUser,
    Weights,
)
from pad_vllm.profiles.profile_weights import WeightLearner
from pad_vllm.profiles.tables import (
    changes,
    choices,
    conversations,
    deletions,
    questions,
    users,
)

MAX_CHOICES = 2000
"""Of a user: the oldest are dropped for newer ones."""

MAX_QUESTIONS = 100
"""Of a user that wait for a choice: the oldest are dropped for newer ones."""

MAX_CONVERSATIONS = 50
"""Of a user: those that were read longest ago are dropped for newer ones."""

_NUM_CONVERSATIONS = (
    sa.select(sa.func.count())
    .where(conversations.c.user_id == users.c.id)
    .scalar_subquery()
    .label("conversations")
)
_PROFILES = sa.select(users, _NUM_CONVERSATIONS)


class _Row(NamedTuple):
    """A user's row as it was read together with the evidence."""

    id: int
    evidence: int
    known: ProfileEvidence


class ProfileStore:
    """The profiles of one database, under the dimensions of one adapter."""

    def __init__(
        self,
        database: Database,
        learner: WeightLearner,
        on_change: Callable[[Profile], None] = lambda _: None,
    ) -> None:
        """Open them.

        Args:
            database: that has them.
            learner: makes weights of evidence.
            on_change: called with each profile that this store changed, in the thread of the call.
        """
        self._database, self._learner, self._on_change = database, learner, on_change

    def get(self, user: str) -> Profile:
        """A user's profile. Raises UnknownUser."""
        with self._database.reading() as connection:
            row = connection.execute(_PROFILES.where(users.c.name == user)).first()
        if row is None:
            raise UnknownUser(user)
        return self._profile(row)

    def put_stated(self, user: str, stated: Weights) -> Profile:
        """What a user said they like, in place of what they said before. Creates the user."""
        with self._database.writing() as connection:
            row = _changed_user(connection, user)
            connection.execute(
                sa.update(users).where(users.c.id == row).values(stated=dict(stated))
            )
        return self._learn(user, row)

    def add_choice(self, user: str, choice: NamedChoice) -> Profile:
        """Learn from a choice. Creates the user. Raises ValueError for numbers that say nothing."""
        self._learner.learn(ProfileEvidence(None, (choice,)))
        with self._database.writing() as connection:
            row = _changed_user(connection, user)
            _insert_choice(connection, row, choice)
        return self._learn(user, row)

    def answer_question(
        self, user: str, question: str, outcome: float, strength: float = 1.0
    ) -> Profile:
        """Learn from the choice between a question's two answers. A question is answered once.

        Args:
            user: who was asked.
            question: its id.
            outcome: 1 for the first answer, 0 for the second, 0.5 for a tie.
            strength: how many choices it counts as.

        Raises:
            UnknownUser: the user has no such question that waits.
            ValueError: numbers that say nothing.
        """
        with self._database.writing() as connection:
            row = _user_id(connection, user)
            asked = (
                row
                and connection.execute(
                    sa.delete(questions)
                    .where(questions.c.id == question, questions.c.user_id == row)
                    .returning(questions.c.first, questions.c.second)
                ).first()
            )
            if not row or not asked:
                raise UnknownUser(user)
            choice = NamedChoice(_difference(asked.first, asked.second), outcome, strength)
            self._learner.learn(ProfileEvidence(None, (choice,)))
            _changed_user(connection, user)
            _insert_choice(connection, row, choice)
        return self._learn(user, row)

    def put_conversation(self, user: str, known_id: int | None, key: str, taught: Weights) -> None:
        """Learn from a conversation, in place of an earlier reading of the same one. Creates the user.

        Args:
            user: whose conversation it is.
            known_id: the user's id when the request came; None for one who was not known.
            key: of the conversation (earlier_turns.py).
            taught: weights that it teaches (`text_reader.ConversationReading`).

        Raises:
            UnknownUser: the user was deleted since the request came.
        """
        with self._database.writing() as connection:
            if known_id is not None and _user_id(connection, user) != known_id:
                raise UnknownUser(user)
            row = _changed_user(connection, user)
            same = (conversations.c.user_id == row) & (conversations.c.key == key)
            connection.execute(sa.delete(conversations).where(same))
            connection.execute(
                sa.insert(conversations).values(user_id=row, key=key, x=dict(taught))
            )
            _drop_oldest(connection, conversations, conversations.c.id, row, MAX_CONVERSATIONS)
        self._learn(user, row)

    @property
    def salt(self) -> str:
        """Of the database: keys of conversations are made with it."""
        return self._database.salt

    def propose_question(self, user: str) -> tuple[dict[str, float], dict[str, float]]:
        """Weights of two answers whose choice would teach most; also of a user who is not known yet."""
        with self._database.reading() as connection:
            row = _user_id(connection, user)
            known = ProfileEvidence(None) if row is None else _evidence(connection, row).known
        return self._learner.propose(known)

    def add_question(self, user: str, first: Weights, second: Weights) -> str:
        """Keep a question until it is answered -> its id. Creates the user.

        Args:
            user: who is asked.
            first: weights that guided the first answer.
            second: those of the second.
        """
        question = secrets.token_urlsafe(16)
        with self._database.writing() as connection:
            known = _user_id(connection, user)
            row = known or _changed_user(connection, user, learned=True)
            connection.execute(
                sa.insert(questions).values(
                    id=question, user_id=row, first=dict(first), second=dict(second)
                )
            )
            _drop_oldest(connection, questions, questions.c.number, row, MAX_QUESTIONS)
        if known is None:
            self._on_change(self.get(user))
        return question

    def delete(self, user: str) -> None:
        """Delete all that is known of a user. Raises UnknownUser."""
        with self._database.writing() as connection:
            row = _user_id(connection, user)
            if row is None:
                raise UnknownUser(user)
            connection.execute(sa.delete(users).where(users.c.id == row))  # the rest cascades
            number = _next_change(connection)
            connection.execute(sa.insert(deletions).values(number=number, user_id=row))

    def change_count(self) -> int:
        """How often the database was changed, by any process."""
        with self._database.reading() as connection:
            return int(connection.scalar(sa.select(changes.c.number)) or 0)

    def changed_since(self, number: int, limit: int) -> list[Profile]:
        """Profiles with changes after this number, the newest first; at most `limit`."""
        newest = _PROFILES.where(users.c.change > number)
        with self._database.reading() as connection:
            rows = connection.execute(newest.order_by(users.c.change.desc()).limit(limit)).all()
        return [self._profile(row) for row in rows]

    def deleted_since(self, number: int) -> set[int]:
        """Ids of users who were deleted after this number."""
        gone = sa.select(deletions.c.user_id).where(deletions.c.number > number)
        with self._database.reading() as connection:
            return set(connection.scalars(gone))

    def _learn(self, user: str, row: int) -> Profile:
        """Weights from all evidence that there is now; the profile with them, or with newer ones."""
        with self._database.reading() as connection:
            read = _evidence(connection, row)
        learned = self._learner.learn(read.known)
        with self._database.writing() as connection:
            connection.execute(
                sa.update(users)
                .where(users.c.id == row, users.c.version < read.evidence)
                .values(
                    version=read.evidence,
                    weights=learned.weights,
                    intervals=learned.intervals,
                    choices=len(read.known.choices),
                    change=_next_change(connection),
                )
            )
            found = connection.execute(_PROFILES.where(users.c.id == row)).first()
        if found is None:  # deleted meanwhile
            raise UnknownUser(user)
        profile = self._profile(found)
        self._on_change(profile)
        return profile

    def _profile(self, row: Any) -> Profile:
        """A row of users, under the dimensions that are served now."""
        weights = {name: row.weights.get(name, 0.0) for name in self._learner.dimensions}
        intervals = {
            name: (low, high) for name, (low, high) in row.intervals.items() if name in weights
        }
        return Profile(
            user=row.name,
            user_id=row.id,
            version=row.version,
            weights=weights,
            intervals=intervals,
            num_choices=row.choices,
            stated=row.stated,
            num_conversations=row.conversations,
        )


def _user_id(connection: sa.Connection, user: str) -> int | None:
    return connection.scalar(sa.select(users.c.id).where(users.c.name == user))


def _changed_user(connection: sa.Connection, user: str, *, learned: bool = False) -> int:
    """The id of a user who has one more evidence; creates them. Locks the row until the transaction ends.

    learned: the evidence says nothing, so that there is nothing to learn.
    """
    row = connection.scalar(
        sa.update(users)
        .where(users.c.name == user)
        .values(evidence=users.c.evidence + 1)
        .returning(users.c.id)
    )
    if row is not None:
        return row
    new = {"name": user, "evidence": 1, "version": int(learned), "weights": {}, "intervals": {}}
    dialect = _inserting(connection)
    inserted = dialect(users).values(**new, choices=0, change=_next_change(connection))
    again = inserted.on_conflict_do_update(  # another process was faster
        index_elements=[users.c.name], set_={"evidence": users.c.evidence + 1}
    )
    return int(connection.scalar(again.returning(users.c.id)) or 0)


def _inserting(connection: sa.Connection) -> Any:
    """The `insert` of this kind of database, which knows conflicts."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert

        return insert
    from sqlalchemy.dialects.sqlite import insert as sqlite_insert

    return sqlite_insert


def _next_change(connection: sa.Connection) -> int:
    """The next number of a change. The row stays locked until the transaction ends, so that whoever sees a
    number sees what lower ones changed.
    """
    counted = sa.update(changes).values(number=changes.c.number + 1).returning(changes.c.number)
    return int(connection.scalar(counted) or 0)


def _insert_choice(connection: sa.Connection, row: int, choice: NamedChoice) -> None:
    connection.execute(
        sa.insert(choices).values(
            user_id=row,
            x=dict(choice.x),
            outcome=choice.outcome,
            strength=choice.strength,
            length=choice.length,
        )
    )
    _drop_oldest(connection, choices, choices.c.id, row, MAX_CHOICES)


def _drop_oldest(
    connection: sa.Connection, table: sa.Table, number: sa.Column[int], row: int, kept: int
) -> None:
    """Delete a user's rows of a table but for the newest.

    Args:
        connection: the transaction.
        table: of choices, questions or conversations.
        number: its column that counts up.
        row: the user's id.
        kept: how many stay.
    """
    own = sa.select(number).where(table.c.user_id == row).order_by(number.desc())
    oldest = connection.scalar(own.offset(kept).limit(1))
    if oldest is not None:
        connection.execute(sa.delete(table).where(table.c.user_id == row, number <= oldest))


def _evidence(connection: sa.Connection, row: int) -> _Row:
    """What is known of a user, with the number of its evidence. Raises UnknownUser for a deleted one."""
    user = connection.execute(sa.select(users).where(users.c.id == row)).first()
    if user is None:
        raise UnknownUser("deleted meanwhile")
    made = connection.execute(
        sa.select(choices).where(choices.c.user_id == row).order_by(choices.c.id)
    )
    known = tuple(NamedChoice(one.x, one.outcome, one.strength, one.length) for one in made)
    taught = tuple(connection.scalars(_conversations_of(row)))
    return _Row(row, user.evidence, ProfileEvidence(user.stated, known, taught))


def _conversations_of(row: int) -> sa.Select[Any]:
    own = sa.select(conversations.c.x).where(conversations.c.user_id == row)
    return own.order_by(conversations.c.id)


def _difference(first: Weights, second: Weights) -> dict[str, float]:
    return {name: first.get(name, 0.0) - second.get(name, 0.0) for name in {**first, **second}}
