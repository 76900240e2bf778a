"""The door to the compiled draw of a token from its scores; the plain form is `cogvideo.inference.sampling`, its
caller.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Final

import torch
from torch import Tensor

from kernels import cpu_build
from kernels.cpu_decode import SOURCE
from kernels.thread_pool import thread_pool

LANES: Final = 16
"""At most so many numbers are computed at once: room behind the last."""

PER_SCORE: Final = 32
"""Multiplications that take as long as one score does in a draw, about."""


def unsupported_reason(logits: Tensor) -> str | None:
    """Why scores like these cannot be drawn from by the compiled form, in words; None where they can."""
    if logits.device.type != "cpu":
        return f"the draw is compiled for the CPU, and the scores are on {logits.device.type}"
    if logits.dtype != torch.float32 or logits.stride(-1) != 1:
        return f"the draw reads scores of float32 that lie side by side, not {logits.dtype} {logits.stride(-1)} apart"
    return cpu_build.unsupported_reason(SOURCE)


class NativeClusterSampler:
    """labels int [V]: the cluster of each token; members int64 [C, M]: its tokens, but for `padding` bool [C, M]."""

    def __init__(self, labels: Tensor, members: Tensor, padding: Tensor) -> None:
        self._labels = labels.to(torch.int32).contiguous()
        self._members = members.contiguous()
        self._sizes = (~padding).sum(1)
        self._clusters, self._widest = members.shape

    def sample(
        self,
        logits: Tensor,
        keys: Tensor,
        temperature: float,
        top_k: int,
        inner_temperature: float,
        threads: int = 1,
    ) -> Tensor:
        """logits [R, V], keys int64 [R, 2] -> token ids [R]. Rows are divided among `threads`."""
        (rows, vocabulary), keys = logits.shape, keys.contiguous()
        if len(keys) != rows or vocabulary != len(self._labels):
            raise ValueError(f"{len(keys)} keys and {len(self._labels)} labels for scores {list(logits.shape)}")
        out = torch.empty(rows, dtype=torch.int64)
        known = (
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (self._labels, self._members, self._sizes)),
            *map(ctypes.c_int64, (self._clusters, self._widest)),
            *(ctypes.c_float(temperature), ctypes.c_int64(top_k), ctypes.c_float(inner_temperature)),
        )

        def some(first: int, last: int) -> None:
            shares, mass = torch.empty(vocabulary + LANES), torch.empty(self._clusters, dtype=torch.float64)
            cpu_build.library(SOURCE).draw(
                ctypes.c_void_p(logits[first].data_ptr()),
                *map(ctypes.c_int64, (last - first, logits.stride(0), vocabulary)),
                *known,
                *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (keys[first], out[first], shares, mass)),
            )

        helpers = thread_pool(threads)
        helpers.run([partial(some, *part) for part in helpers.split(rows, rows * vocabulary * PER_SCORE)])
        return out
