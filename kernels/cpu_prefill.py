"""Compiled prefill: text and given frames pass through all layers, and their keys and values are stored for decoding.

A plan defines the attention among tokens, and the cache indices of keys and values. The reference is the network's own
pass (`cogvideo.models.attention`), whose results differ only by the order of sums.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import cpu_build
from kernels.cpu_decode import SOURCE, KVBuffers, NativeNetwork
from kernels.thread_pool import thread_pool


class QueryGroup(NamedTuple):
    """Tokens that attend to the same keys."""

    queries: Tensor  # token numbers, int
    keys: Tensor  # token numbers, int; those of the text come first
    before: int | None = None
    """Query i attends to the first `before` + i + 1 keys. None: to all keys."""
    boost: float = 0.0
    """Text attention bias: added to the scores of the text."""


class LayerPattern(NamedTuple):
    """The attention of one channel, and the keys and values that it stores."""

    groups: Sequence[QueryGroup]
    kept: Tensor  # [2, K] int: token numbers, and the cache index of each


class _Group(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key")),
        *((name, ctypes.c_int64) for name in ("queries", "keys", "causal")),
        ("boost", ctypes.c_float),
    )


class _Sight(ctypes.Structure):
    _fields_ = (
        ("group", ctypes.POINTER(_Group)),
        *((name, ctypes.c_void_p) for name in ("token", "place")),
        *((name, ctypes.c_int64) for name in ("groups", "kept")),
    )


class PrefillPlan:
    """Three patterns, packed: of the spatial channel, and of the temporal channel on even and on odd layers.

    `text`: number of text tokens. They come first and have no output in the temporal channel.
    """

    def __init__(self, patterns: Sequence[LayerPattern], text: int) -> None:
        self.text, self._references = text, list[object]()  # the latter keep alive what C has pointers to
        self.described = (_Sight * 3)(*(self._pattern(pattern) for pattern in patterns))
        self.widest = max((len(group.keys) for pattern in patterns for group in pattern.groups), default=0)
        self.tokens = 1 + max(int(group.queries.max()) for pattern in patterns for group in pattern.groups)
        self.furthest = max((int(pattern.kept[1].max()) for pattern in patterns if pattern.kept.numel()), default=-1)

    def _pattern(self, pattern: LayerPattern) -> _Sight:
        packed = (_Group * len(pattern.groups))(*(self._group(group) for group in pattern.groups))
        self._references.append(packed)
        stored = self._numbers(pattern.kept)
        token, slot = stored.unbind(0)
        pointers = token.data_ptr(), slot.data_ptr()
        return _Sight(ctypes.cast(packed, ctypes.POINTER(_Group)), *pointers, len(packed), stored.shape[1])

    def _group(self, group: QueryGroup) -> _Group:
        queries, keys = self._numbers(group.queries), self._numbers(group.keys)
        before = -1 if group.before is None else group.before
        return _Group(queries.data_ptr(), keys.data_ptr(), len(queries), len(keys), before, group.boost)

    def _numbers(self, numbers: Tensor) -> Tensor:
        numbers = numbers.to(torch.int32).contiguous()
        self._references.append(numbers)
        return numbers


def prefill(
    steps: NativeNetwork, x: Tensor, padding: Sequence[int], plan: PrefillPlan, arenas: KVBuffers, threads: int = 1
) -> None:
    """Run the layers on x [B, S, h], the embedded tokens of each row; write keys and values to `arenas`.

    x is overwritten. padding: number of padding tokens before the text of each row; they are masked. Rows are divided
    among `threads`, without effect on the results.

    Raises ValueError if tokens, padding or buffers do not fit the plan.
    """
    batch, tokens, hidden = x.shape
    if tokens != plan.tokens or len(padding) != batch or plan.furthest >= arenas.widest or not x.is_contiguous():
        given = f"{tokens} tokens of {batch} rows, {len(padding)} texts and a capacity of {arenas.widest}"
        raise ValueError(f"{given} for a plan of {plan.tokens} tokens and a capacity of {plan.furthest + 1}")
    library = cpu_build.library(SOURCE)
    sizes = (hidden, steps.heads, steps.channels, tokens, plan.widest)
    scratch_size = int(library.read_scratch_size(*map(ctypes.c_int64, sizes)))

    def read_row(row: int) -> None:
        scratch = torch.empty(scratch_size)
        library.read_row(
            steps.described,
            ctypes.c_void_p(x[row].data_ptr()),
            *map(ctypes.c_int64, (row, batch, tokens, plan.text, padding[row])),
            plan.described,
            arenas.described,
            ctypes.c_void_p(scratch.data_ptr()),
        )

    thread_pool(threads).run([partial(read_row, row) for row in range(batch)])
