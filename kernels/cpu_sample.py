"""Compiled cluster sampling of tokens from logits. Its reference is `cogvideo.inference.sampling`, the caller."""

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
"""Numbers of the widest vector register: padding of buffers."""

PER_SCORE: Final = 32
"""Cost of one logit in sampling, in multiplications (approximate)."""


def unsupported_reason(logits: Tensor) -> str | None:
    """Return why the compiled form does not support logits like these. None if it does."""
    if logits.device.type != "cpu":
        return f"sampling is compiled for the CPU, and the logits are on {logits.device.type}"
    if logits.dtype != torch.float32 or logits.stride(-1) != 1:
        return f"sampling requires contiguous float32 logits, not {logits.dtype} with stride {logits.stride(-1)}"
    return cpu_build.unsupported_reason(SOURCE)


class NativeClusterSampler:
    """Compiled cluster sampler.

    labels int [V]: the cluster of each token. members int64 [C, M]: the tokens of each cluster, except `padding` bool
    [C, M].
    """

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
        """Sample token ids [R] from logits [R, V] with keys int64 [R, 2]. Rows are divided among `threads`.

        Raises ValueError if the shapes do not fit.
        """
        (rows, vocabulary), keys = logits.shape, keys.contiguous()
        if len(keys) != rows or vocabulary != len(self._labels):
            raise ValueError(f"{len(keys)} keys and {len(self._labels)} labels for logits {list(logits.shape)}")
        out = torch.empty(rows, dtype=torch.int64)
        constants = (
            *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (self._labels, self._members, self._sizes)),
            *map(ctypes.c_int64, (self._clusters, self._widest)),
            *(ctypes.c_float(temperature), ctypes.c_int64(top_k), ctypes.c_float(inner_temperature)),
        )

        def sample_rows(first: int, last: int) -> None:
            weights, mass = torch.empty(vocabulary + LANES), torch.empty(self._clusters, dtype=torch.float64)
            cpu_build.library(SOURCE).draw(
                ctypes.c_void_p(logits[first].data_ptr()),
                *map(ctypes.c_int64, (last - first, logits.stride(0), vocabulary)),
                *constants,
                *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (keys[first], out[first], weights, mass)),
            )

        pool = thread_pool(threads)
        pool.run([partial(sample_rows, *part) for part in pool.split(rows, rows * vocabulary * PER_SCORE)])
        return out
