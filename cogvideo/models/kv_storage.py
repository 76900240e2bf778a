"""Buffers of keys and values, allocated once and written in place, in the model's precision or in int8."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cogvideo.models.attention import AttentionContext
from cogvideo.token_layout import KeyRange


class CacheOverflowError(IndexError):
    """A write outside the cache: a programming error, never caused by a user's input."""


class SlotRun(NamedTuple):
    """Adjacent slots of one step. Each attends to the keys before the run, the earlier slots of the run, and itself."""

    key_range: KeyRange
    """The key range of the last slot."""
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

    def write(self, slots: Tensor, k_v: Tensor) -> None:
        """Write k_v [2, B, heads, S, d] to the cache indices `slots` [S]."""
        self.k_v[:, :, :, slots] = k_v

    def append(self, run: SlotRun, k_v: Tensor) -> AttentionContext:
        """Write k_v [2, B, heads, slots, d] to the end of the run's key range; return views of the whole range.

        Raises CacheOverflowError.
        """
        (start, end), slots, mask = run.key_range, run.slots, run.mask
        self._require_capacity(end)
        # `narrow` and `unbind`: indexing takes as long as the copy of a small step
        self.k_v.narrow(3, end - slots, slots).copy_(k_v)
        k, v = self.k_v.narrow(3, start, end - start).unbind(0)
        return AttentionContext(k, v, mask, slots)

    def _require_capacity(self, end: int) -> None:
        if end > self.capacity:
            raise CacheOverflowError(f"index {end - 1} of a cache of {self.capacity}")


class Int8KVBuffer(KVBuffer):
    """Keys and values in int8, with a scale for each position and head. A step dequantizes the range that it reads.

    It takes half the memory of fp16. The largest number of a key or value is exact; the error of the others is at most
    1/254 of it.
    """

    def __init__(self, rows: int, heads: int, capacity: int, size: int, like: Tensor) -> None:
        self.capacity = capacity
        self.codes = like.new_empty(2, rows, heads, capacity, size, dtype=torch.int8)
        self.scales = like.new_empty(2, rows, heads, capacity, 1)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def write(self, slots: Tensor, k_v: Tensor) -> None:
        codes, scales = quantize_int8(k_v)
        self.codes[:, :, :, slots], self.scales[:, :, :, slots] = codes, scales

    def append(self, run: SlotRun, k_v: Tensor) -> AttentionContext:
        (start, end), slots, mask = run.key_range, run.slots, run.mask
        self._require_capacity(end)
        for stored, new in zip((self.codes, self.scales), quantize_int8(k_v)):
            stored.narrow(3, end - slots, slots).copy_(new)
        k, v = (self.codes.narrow(3, start, end - start) * self.scales.narrow(3, start, end - start)).unbind(0)
        return AttentionContext(k, v, mask, slots)


def quantize_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize [..., d] to int8 codes from -127 to 127 and their scales, [..., 1]."""
    scales = x.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny * 128) / 127
    return (x / scales).round_().to(torch.int8), scales


def append_runs(buffer: KVBuffer, runs: list[SlotRun], k_v: Tensor) -> list[AttentionContext]:
    """Write k_v [2, B, heads, Q, d] of the slots of `runs` to `buffer`; return the context of each run."""
    if len(runs) == 1:
        return [buffer.append(runs[0], k_v)]
    parts = k_v.split([run.slots for run in runs], dim=3)
    return [buffer.append(run, part) for run, part in zip(runs, parts, strict=True)]
