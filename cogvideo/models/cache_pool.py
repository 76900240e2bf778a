"""Storage that finished batches leave behind, with the steps captured on it, for the next ones of the same shape.

In: a cache that nobody draws with any more. Out: the same one, when a batch of its shape is to be drawn again: what was
captured for the first video serves all that follow.
"""

from __future__ import annotations

from typing import NamedTuple

from cogvideo.config import STORAGES
from cogvideo.models.kv_cache import Cache
from cogvideo.token_layout import Stage

TEXT_STEP = 16
"""Text slots come in multiples of this, so that prompts of different length have the same shape."""


class Shape(NamedTuple):
    """What storage and captured steps depend on; see `Cache`."""

    stage: Stage
    rows: int
    text: int
    given: tuple[int, ...]
    both: bool
    boost: float
    lanes: int
    int8: bool


class Kept:
    """At most `STORAGES` caches, which with the one that is drawn with take `limit` bytes; the oldest go first.

    So they never take more than the largest batch does, for which memory has to suffice anyway. 0: none is kept.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._idle: dict[Shape, Cache] = {}

    def take(self, shape: Shape) -> Cache | None:
        """One that nobody else draws with until it is given back."""
        return self._idle.pop(shape, None)

    def give_back(self, shape: Shape, cache: Cache) -> None:
        """Nobody draws with `cache` any more. Where nothing can be captured on it, it is not worth its memory."""
        if cache.why_not_fast is None and cache.nbytes <= self.limit:
            self.make_room(cache.nbytes)
            self._idle[shape] = cache

    def make_room(self, size: int) -> None:
        """Lets go of as many as it takes for one more of `size` bytes."""
        while self._idle and (len(self._idle) >= STORAGES or self._bytes() + size > self.limit):
            del self._idle[next(iter(self._idle))]

    def clear(self) -> None:
        self._idle.clear()

    def _bytes(self) -> int:
        return sum(cache.nbytes for cache in self._idle.values())


def text_slots(longest: int, most: int) -> int:
    """Slots for texts of at most `longest` tokens where storage is kept; never more than `most` unless they need it."""
    return max(longest, min(-(-longest // TEXT_STEP) * TEXT_STEP, most))
