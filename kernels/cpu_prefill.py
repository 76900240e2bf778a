"""The door to compiled reading: text and given frames through all layers, their keys and values kept for drawing.

What is read is told by its sights: which tokens attend to which, and where those are kept that drawn ones will see. The
plain form is the network's own pass (`cogvideo.models.attention`), with the same numbers but for the order of sums.
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
    """Tokens that attend to the same ones."""

    queries: Tensor  # numbers of tokens, int
    keys: Tensor  # likewise; those of the text come first
    before: int | None = None
    """Query i sees `before` + i + 1 keys; None: all of them."""
    boost: float = 0.0
    """Added to the scores of the text."""


class LayerPattern(NamedTuple):
    """One channel."""

    groups: Sequence[QueryGroup]
    kept: Tensor  # [2, K] int: numbers of tokens, and the place of each in its arena


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
    """Three sights, packed: of the frame's own channel, of the one across frames on even layers and on odd ones.

    `text`: how many of the tokens are the text's; they come first, and have no part in the second channel.
    """

    def __init__(self, sights: Sequence[LayerPattern], text: int) -> None:
        self.text, self._kept = text, list[object]()
        self.described = (_Sight * 3)(*(self._sight(sight) for sight in sights))
        self.widest = max((len(group.keys) for sight in sights for group in sight.groups), default=0)
        self.tokens = 1 + max(int(group.queries.max()) for sight in sights for group in sight.groups)
        self.furthest = max((int(sight.kept[1].max()) for sight in sights if sight.kept.numel()), default=-1)

    def _sight(self, sight: LayerPattern) -> _Sight:
        packed = (_Group * len(sight.groups))(*(self._group(group) for group in sight.groups))
        self._kept.append(packed)
        kept = self._numbers(sight.kept)
        token, place = kept.unbind(0)
        pointers = token.data_ptr(), place.data_ptr()
        return _Sight(ctypes.cast(packed, ctypes.POINTER(_Group)), *pointers, len(packed), kept.shape[1])

    def _group(self, group: QueryGroup) -> _Group:
        queries, keys = self._numbers(group.queries), self._numbers(group.keys)
        before = -1 if group.before is None else group.before
        return _Group(queries.data_ptr(), keys.data_ptr(), len(queries), len(keys), before, group.boost)

    def _numbers(self, numbers: Tensor) -> Tensor:
        numbers = numbers.to(torch.int32).contiguous()
        self._kept.append(numbers)
        return numbers


def prefill(
    steps: NativeNetwork, x: Tensor, padding: Sequence[int], plan: PrefillPlan, arenas: KVBuffers, threads: int = 1
) -> None:
    """x [B, S, h]: embedded tokens of each row, which are overwritten. Keys and values go into `arenas`.

    padding: how many of the first text tokens of each row nobody sees. Rows are divided among `threads`; a row's
    numbers do not depend on it.
    """
    batch, tokens, hidden = x.shape
    if tokens != plan.tokens or len(padding) != batch or plan.furthest >= arenas.widest or not x.is_contiguous():
        given = f"{tokens} tokens of {batch} rows, {len(padding)} texts and {arenas.widest} places"
        raise ValueError(f"{given} for a plan of {plan.tokens} tokens and {plan.furthest + 1} places")
    library = cpu_build.library(SOURCE)
    sizes = (hidden, steps.heads, steps.channels, tokens, plan.widest)
    room = int(library.read_scratch_size(*map(ctypes.c_int64, sizes)))

    def one(row: int) -> None:
        scratch = torch.empty(room)
        library.read_row(
            steps.described,
            ctypes.c_void_p(x[row].data_ptr()),
            *map(ctypes.c_int64, (row, batch, tokens, plan.text, padding[row])),
            plan.described,
            arenas.described,
            ctypes.c_void_p(scratch.data_ptr()),
        )

    thread_pool(threads).run([partial(one, row) for row in range(batch)])
