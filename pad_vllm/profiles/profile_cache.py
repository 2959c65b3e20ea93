"""The weights of users in memory, so that a request looks up a dict and waits for no disk.

In: the store. Out: a user's version and weights. The most recently changed users are loaded when a server
starts. A thread asks the database every half second what other processes changed; what this process changed
is here at once. Users beyond the bound are read from the database at their next request.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from pad_vllm.profiles.profile import Profile, UnknownUser, weights_text
from pad_vllm.profiles.profile_store import ProfileStore

MAX_CACHED_USERS = 200_000
"""About 100 MB."""

POLL_S = 0.5
"""Seconds between two looks at what other processes changed."""


class CachedWeights(NamedTuple):
    """What a request of a user is guided by."""

    version: int

    pad_weights: str
    """As the argument of a request; empty where nothing is known of the user."""

    user_id: int
    """See Profile."""

    has_stated: bool
    """Whether the user said what they like: conversations then count for nothing."""


class ProfileCache:
    """Of one process. Thread-safe. `start` begins the thread."""

    def __init__(
        self,
        store: ProfileStore,
        on_error: Callable[[Exception], None],
        max_users: int = MAX_CACHED_USERS,
        poll_s: float = POLL_S,
    ) -> None:
        """An empty cache.

        Args:
            store: that has the profiles.
            on_error: told what a look at the database raised; the next look tries again.
            max_users: how many are kept.
            poll_s: seconds between two looks.
        """
        self._store, self._on_error = store, on_error
        self._max_users, self._poll_s = max_users, poll_s
        self._known: OrderedDict[str, CachedWeights] = OrderedDict()
        self._has_all = False
        self._seen = -1  # number of a change
        self._gone: set[int] = (
            set()
        )  # ids of deleted users: a read that began earlier must not bring one back
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Load users, and begin to look at what other processes change. Raises what the database raises."""
        self.refresh()
        self._thread = threading.Thread(target=self._poll, name="pad-profiles", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def weights(self, user: str) -> CachedWeights | None:
        """What is known of a user; None for an unknown one. Reads the database only where there are more
        users than are kept.
        """
        with self._lock:
            found = self._known.get(user)
            if found is not None:
                self._known.move_to_end(user)
                return found
            if self._has_all:
                return None
        try:
            profile = self._store.get(user)
        except UnknownUser:
            return None
        return self.add(profile)

    def add(self, profile: Profile) -> CachedWeights:
        """Keep a profile that was read or changed. An older version never replaces a newer one."""
        new = CachedWeights(
            profile.version,
            weights_text(profile.weights),
            profile.user_id,
            has_stated=profile.stated is not None,
        )
        with self._lock:
            if profile.user_id in self._gone:
                return new
            known = self._known.get(profile.user)
            if known is not None and (known.user_id, known.version) > (new.user_id, new.version):
                return known
            self._known[profile.user] = new
            self._known.move_to_end(profile.user)
            if len(self._known) > self._max_users:
                self._known.popitem(last=False)
                self._has_all = False
        return new

    def refresh(self) -> None:
        """Look once at what was changed."""
        number = self._store.change_count()
        if number == self._seen:
            return
        gone = self._store.deleted_since(self._seen)
        changed = self._store.changed_since(self._seen, self._max_users + 1)
        with self._lock:
            self._gone |= gone
            for user in [name for name, one in self._known.items() if one.user_id in gone]:
                del self._known[user]
        for profile in reversed(changed):
            self.add(profile)
        with self._lock:
            if self._seen < 0:
                self._has_all = len(changed) <= self._max_users
            self._seen = max(self._seen, number)

    def _poll(self) -> None:
        while not self._stopped.wait(self._poll_s):
            self._try_refresh()

    def _try_refresh(self) -> None:
        try:
            self.refresh()
        except Exception as error:  # noqa: BLE001, the server goes on with what it knows
            self._on_error(error)
