"""Thread pool for computations that can be divided into tasks, as long as the machine has idle cores.

The calling thread computes as well, and never waits for a task that has not started. If it waits long for a started
task, the cores are busy with other work. The next runs then use the calling thread alone, more of them each time.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

Task = Callable[[], object]

WORTH: Final = 2_000_000
"""Multiplications that take about as long as waking a thread, some hundredths of a millisecond."""

LONG: Final = 1.5
"""Maximum time to wait for the other threads, as a multiple of the caller's own work."""

ALONE: Final = (16, 1024)
"""Runs on the calling thread alone after the first long wait, and the maximum after repeated ones."""


class ThreadPool:
    """A pool of threads that shares tasks with the calling thread. Tasks must be independent of each other.

    `threads`: including the calling thread.
    """

    def __init__(self, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.threads, self._clock = threads, clock
        self._alone, self._next_alone = (
            0,
            ALONE[0],
        )  # runs left on the calling thread alone; their number after a long wait
        self._others = ThreadPoolExecutor(threads - 1, "cogvideo-team") if threads > 1 else None

    def run(self, pieces: Sequence[Task]) -> None:
        """Run all tasks. Raises the error of a task."""
        remaining = deque(pieces)
        others = min(self.threads, len(remaining)) - 1
        if self._others is None or others < 1 or self._alone:
            self._alone = max(0, self._alone - 1)
            _work(remaining)
            return
        started = self._clock()
        futures = [self._others.submit(_work, remaining) for _ in range(others)]
        try:
            _work(remaining)
        finally:
            done = self._clock()
            for future in futures:
                if not future.cancel():
                    future.result()
            self._update_backoff(done - started, self._clock() - done)

    def _update_backoff(self, worked: float, waited: float) -> None:
        """Set the number of runs on the calling thread alone from its seconds of work and of waiting."""
        if waited <= LONG * worked:
            self._next_alone = ALONE[0]
            return
        self._alone, self._next_alone = self._next_alone, min(2 * self._next_alone, ALONE[1])

    def split(self, count: int, work: int) -> list[tuple[int, int]]:
        """Divide 0 .. count - 1 into ranges (start, end), end exclusive: at most one for each thread.

        `work`: multiplications of all ranges together. No range has fewer than `WORTH`, except a single one.
        """
        parts = max(1, min(self.threads, count, work // WORTH))
        edges = [count * part // parts for part in range(parts + 1)]
        return list(itertools.pairwise(edges))


@functools.cache
def thread_pool(threads: int) -> ThreadPool:
    """Return the shared pool of `threads` threads. They start with its first run."""
    return ThreadPool(threads)


def _work(remaining: deque[Task]) -> None:
    while True:
        try:
            task = remaining.popleft()
        except IndexError:
            return
        task()
