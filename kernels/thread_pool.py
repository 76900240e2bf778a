"""Further threads that lend a hand where a computation falls into pieces, as long as the machine has cores to spare.

The caller always computes as well, and never waits for a piece that nobody has begun. Where it has to wait long for one
that was begun, other things have the cores: then it computes alone for a while, longer each time that this is so.
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
"""Multiplications that take about as long as it takes to wake a thread, some hundredths of a millisecond."""

LONG: Final = 1.5
"""Times the caller's own work: waiting longer than this for the others is long."""

ALONE: Final = (16, 1024)
"""Runs without the others after the first long wait, and at most."""


class ThreadPool:
    """`threads`: with the caller. Pieces must be independent of each other and of who computes them."""

    def __init__(self, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.threads, self._clock = threads, clock
        self._alone, self._next_alone = 0, ALONE[0]  # runs that are left without the others; those after a long wait
        self._others = ThreadPoolExecutor(threads - 1, "cogvideo-team") if threads > 1 else None

    def run(self, pieces: Sequence[Task]) -> None:
        """Computes all pieces. Raises what a piece raises."""
        left = deque(pieces)
        others = min(self.threads, len(left)) - 1
        if self._others is None or others < 1 or self._alone:
            self._alone = max(0, self._alone - 1)
            _work(left)
            return
        begun = self._clock()
        helping = [self._others.submit(_work, left) for _ in range(others)]
        try:
            _work(left)
        finally:
            done = self._clock()
            for other in helping:
                if not other.cancel():
                    other.result()
            self._judge(done - begun, self._clock() - done)

    def _judge(self, worked: float, waited: float) -> None:
        """Whether the others were worth it, by seconds of the caller."""
        if waited <= LONG * worked:
            self._next_alone = ALONE[0]
            return
        self._alone, self._next_alone = self._next_alone, min(2 * self._next_alone, ALONE[1])

    def split(self, count: int, work: int) -> list[tuple[int, int]]:
        """0 .. count - 1 in as many stretches as there are threads, or fewer: (first, the one behind the last).

        `work`: multiplications of all together; a stretch of less than `WORTH` is not made.
        """
        parts = max(1, min(self.threads, count, work // WORTH))
        edges = [count * part // parts for part in range(parts + 1)]
        return list(itertools.pairwise(edges))


@functools.cache
def thread_pool(threads: int) -> ThreadPool:
    """One for each number of threads; its threads begin with its first work."""
    return ThreadPool(threads)


def _work(left: deque[Task]) -> None:
    while True:
        try:
            piece = left.popleft()
        except IndexError:
            return
        piece()
