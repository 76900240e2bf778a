"""Buffers of keys and values, allocated once and written in place, in full precision or in int8."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cogvideo.models.attention import AttentionContext
from cogvideo.token_layout import KeyRange


class CacheOverflowError(IndexError):
    """A slot was to be kept for which there is no place: a mistake of the caller, never of the user."""


class SlotRun(NamedTuple):
    """Slots of one step whose places follow each other: each sees what lies before all of them, and those before it."""

    stretch: KeyRange
    """What the last of them sees."""
    slots: int
    mask: Tensor | None


class KVBuffer:
    """Keys and values of one layer and channel: [2, B, heads, capacity, d]."""

    def __init__(self, rows: int, heads: int, capacity: int, size: int, like: Tensor) -> None:
        self.capacity = capacity
        self.k_v = like.new_empty(2, rows, heads, capacity, size)

    @property
    def nbytes(self) -> int:
        return self.k_v.nbytes

    def write(self, places: Tensor, k_v: Tensor) -> None:
        """Keep k_v [2, B, heads, S, d] at `places` [S]."""
        self.k_v[:, :, :, places] = k_v

    def append(self, run: SlotRun, k_v: Tensor) -> AttentionContext:
        """Keep k_v [2, B, heads, slots, d] at the end of the run's stretch; views of all that is in the stretch."""
        (start, end), slots, mask = run
        self._require(end)
        # `narrow` and `unbind`, since indexing costs as much as the copy of a small step
        self.k_v.narrow(3, end - slots, slots).copy_(k_v)
        k, v = self.k_v.narrow(3, start, end - start).unbind(0)
        return AttentionContext(k, v, mask, slots)

    def _require(self, end: int) -> None:
        if end > self.capacity:
            raise CacheOverflowError(f"place {end - 1} of a cache of {self.capacity}")


class Int8KVBuffer(KVBuffer):
    """The same in 8 bits, with a scale for each position and head; what a step sees becomes full numbers for the step.

    Half of fp16's memory. The largest number of a key or value is kept exactly, the others to within 1/254 of it.
    """

    def __init__(self, rows: int, heads: int, capacity: int, size: int, like: Tensor) -> None:
        self.capacity = capacity
        self.codes = like.new_empty(2, rows, heads, capacity, size, dtype=torch.int8)
        self.scales = like.new_empty(2, rows, heads, capacity, 1)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def write(self, places: Tensor, k_v: Tensor) -> None:
        codes, scales = quantize_int8(k_v)
        self.codes[:, :, :, places], self.scales[:, :, :, places] = codes, scales

    def append(self, run: SlotRun, k_v: Tensor) -> AttentionContext:
        (start, end), slots, mask = run
        self._require(end)
        for kept, new in zip((self.codes, self.scales), quantize_int8(k_v)):
            kept.narrow(3, end - slots, slots).copy_(new)
        k, v = (self.codes.narrow(3, start, end - start) * self.scales.narrow(3, start, end - start)).unbind(0)
        return AttentionContext(k, v, mask, slots)


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """[..., d] -> whole numbers from -127 to 127, and what they are to be multiplied with, [..., 1]."""
    scales = x.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny * 128) / 127
    return (x / scales).round_().to(torch.int8), scales


def append_runs(arena: KVBuffer, runs: list[SlotRun], k_v: Tensor) -> list[AttentionContext]:
    if len(runs) == 1:
        return [arena.append(runs[0], k_v)]
    parts = k_v.split([run.slots for run in runs], dim=3)
    return [arena.append(run, part) for run, part in zip(runs, parts, strict=True)]
