"""Storage that finished videos leave behind, with the steps captured on it, for the next ones of the same shape.

In: a cache that nobody draws with any more. Out: the same one, when a batch of its shape is to be drawn again: what was
captured for the first video serves all that follow.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from cogvideo.models.cache import Cache

MOST = 6
"""Caches that are kept: of the first frame, of the keyframes and of three rounds, and one more."""

FREE = 4
"""A card keeps them as long as one part in so many of its memory is free besides."""

TEXT_STEP = 16
"""Text slots come in multiples of this, so that prompts of different length have the same shape."""


class Shape(NamedTuple):
    """What storage and captured steps depend on; see `Cache`."""

    rows: int
    text: int
    given: tuple[int, ...]
    both: bool
    boost: float
    lanes: int
    int8: bool


class Kept:
    """At most `MOST` caches; those that were not used for the longest time go first."""

    def __init__(self) -> None:
        self._idle: dict[Shape, Cache] = {}

    def take(self, shape: Shape) -> Cache | None:
        """One that nobody else draws with until it is given back."""
        return self._idle.pop(shape, None)

    def give_back(self, shape: Shape, cache: Cache) -> None:
        """Nobody draws with `cache` any more. Where nothing can be captured on it, it is not worth its memory."""
        if cache.why_not_fast is not None or not has_room(cache.like.device):
            return
        self._idle[shape] = cache
        for oldest in list(self._idle)[:-MOST]:
            del self._idle[oldest]


def text_slots(longest: int, most: int) -> int:
    """Slots for texts of at most `longest` tokens where storage is kept; never more than `most` unless they need it."""
    return max(longest, min(-(-longest // TEXT_STEP) * TEXT_STEP, most))


def has_room(device: torch.device) -> bool:
    """Whether keeping storage leaves enough for what else a video takes."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    return free * FREE >= total
