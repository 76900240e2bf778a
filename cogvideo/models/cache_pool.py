"""Storage that finished batches leave behind, with the steps captured on it, for the next ones of the same shape.

In: a cache that nobody draws with any more. Out: the same one, when a batch of its shape is to be drawn again: what was
captured for the first video serves all that follow.
"""

from __future__ import annotations

from typing import NamedTuple

from cogvideo.config import MAX_IDLE_CACHES
from cogvideo.models.kv_cache import KVCache
from cogvideo.token_layout import Stage

TEXT_STEP = 16
"""Text slots come in multiples of this, so that prompts of different length have the same shape."""


class CacheKey(NamedTuple):
    """What storage and captured steps depend on; see `Cache`."""

    stage: Stage
    rows: int
    text: int
    given: tuple[int, ...]
    use_temporal: bool
    text_attention_bias: float
    parallel_frames: int
    int8: bool


class CachePool:
    """At most `STORAGES` caches, which with the one that is drawn with take `limit` bytes; the oldest go first.

    So they never take more than the largest batch does, for which memory has to suffice anyway. 0: none is kept.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._idle: dict[CacheKey, KVCache] = {}

    def acquire(self, shape: CacheKey) -> KVCache | None:
        """One that nobody else draws with until it is given back."""
        return self._idle.pop(shape, None)

    def release(self, shape: CacheKey, cache: KVCache) -> None:
        """Nobody draws with `cache` any more. Where nothing can be captured on it, it is not worth its memory."""
        if cache.fast_path_unsupported_reason is None and cache.nbytes <= self.limit:
            self.evict(cache.nbytes)
            self._idle[shape] = cache

    def evict(self, size: int) -> None:
        """Lets go of as many as it takes for one more of `size` bytes."""
        while self._idle and (len(self._idle) >= MAX_IDLE_CACHES or self._bytes() + size > self.limit):
            del self._idle[next(iter(self._idle))]

    def clear(self) -> None:
        self._idle.clear()

    def _bytes(self) -> int:
        return sum(cache.nbytes for cache in self._idle.values())


def text_slots(longest: int, most: int) -> int:
    """Slots for texts of at most `longest` tokens where storage is kept; never more than `most` unless they need it."""
    return max(longest, min(-(-longest // TEXT_STEP) * TEXT_STEP, most))
