"""Translates prompts for the reward model in another thread, and says how long a step may wait for them.

In: prompts in the base's tokens, as requests join. Out: futures of their AlignedTokens. The shortest is next,
so that no prompt waits for longer ones that have not begun. All rows of a step are sampled together, so a
wait for one prompt delays every row: steps wait a bounded time, and not at all while a prompt is late. It
knows neither rewards nor vLLM.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock

from pad_vllm.text.token_alignment import AlignedTokens, TokenAligner

LONGEST_WAIT_S = {"unguided": 0.25, "stop": 10.0}
"""By `on_failure`: a late prompt costs its answer some unguided tokens, or with `stop` its end. A prompt of
32k tokens takes about 0.2 s.
"""


class PromptReader:
    """The prompts of one engine's requests."""

    def __init__(self, aligner: TokenAligner, longest_wait_s: float) -> None:
        """aligner: translates the prompts; longest_wait_s: of a step."""
        self._aligner, self._longest_wait_s = aligner, longest_wait_s
        # One thread: templates are learned anew at midnight, which no other call may see half done.
        self._thread = ThreadPoolExecutor(1, "pad-prompts")
        self._lock = Lock()
        self._unread: list[tuple[int, int, Future[AlignedTokens], Sequence[int], str]] = []
        self._numbers = itertools.count()
        self._late: set[Future[AlignedTokens]] = set()

    def submit(self, prompt: Sequence[int], preference: str) -> Future[AlignedTokens]:
        """Translate a prompt when its turn comes; a future that is cancelled before is left out."""
        opened: Future[AlignedTokens] = Future()
        with self._lock:
            entry = len(prompt), next(self._numbers), opened, prompt, preference
            heapq.heappush(self._unread, entry)
        self._thread.submit(self._read_shortest)
        return opened

    def _read_shortest(self) -> None:
        with self._lock:
            _, _, opened, prompt, preference = heapq.heappop(self._unread)
        if not opened.set_running_or_notify_cancel():
            return
        try:
            opened.set_result(self._aligner.start(prompt, preference))
        except Exception as error:  # noqa: BLE001, it concerns this prompt alone
            opened.set_exception(error)

    def wait_for(self, needed: Iterable[Future[AlignedTokens]]) -> None:
        """Return when these prompts are translated, after the longest wait at the latest. At once while one
        that was waited for in vain is still late, as the thread cannot keep up.
        """
        self._late = {future for future in self._late if not future.done()}
        if not self._late:
            self._late = set(wait(needed, self._longest_wait_s).not_done)
