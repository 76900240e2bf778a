"""Pool of idle KV caches and the steps captured on them, for later batches of the same shape.

In: a cache that is no longer used. Out: the same cache, for the next batch with the same key. Steps captured for the
first video thus serve all later ones.
"""

from __future__ import annotations

from cogvideo.config import MAX_IDLE_CACHES
from cogvideo.models.kv_cache import CacheKey, KVCache

TEXT_STEP = 16
"""Text slots are rounded up to a multiple of this, so that prompts of different lengths share caches."""


class CachePool:
    """At most `MAX_IDLE_CACHES` idle caches. Together with the cache in use they take at most `limit` bytes.

    The oldest is evicted first. They never take more than the largest batch, which memory has to hold anyway.
    `limit` 0: caches are not kept.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._idle: dict[CacheKey, KVCache] = {}

    def acquire(self, key: CacheKey) -> KVCache | None:
        """Remove an idle cache from the pool and return it. None if there is none with this key."""
        return self._idle.pop(key, None)

    def release(self, key: CacheKey, cache: KVCache) -> None:
        """Return a cache to the pool. Without captured steps it is not worth its memory and is dropped."""
        if cache.fast_path_unsupported_reason is None and cache.nbytes <= self.limit:
            self.evict(cache.nbytes)
            self._idle[key] = cache

    def evict(self, size: int) -> None:
        """Free idle caches until one more of `size` bytes fits."""
        while self._idle and (len(self._idle) >= MAX_IDLE_CACHES or self._bytes() + size > self.limit):
            del self._idle[next(iter(self._idle))]

    def clear(self) -> None:
        self._idle.clear()

    def _bytes(self) -> int:
        return sum(cache.nbytes for cache in self._idle.values())


def text_slots(longest: int, most: int) -> int:
    """Return the text slots of a pooled cache: `longest` rounded up to `TEXT_STEP`, at most `most`.

    If `longest` exceeds `most`, it is `longest`.
    """
    return max(longest, min(-(-longest // TEXT_STEP) * TEXT_STEP, most))
