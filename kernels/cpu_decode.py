"""The door to the compiled decoding step: all layers of a network for one or more slots of every row, in one call.

A network is packed once into `NativeNetwork`; the plain form of the same step is the caller's
(`cogvideo.models.fused_decode`), to be used if `unsupported_reason` is not None. Weights may be kept in fewer bits;
sums are always fp32. Weights that fp16 holds exactly, as those of a published checkpoint, are kept so whatever was
asked for: the same numbers, half the memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import cpu_build
from kernels.thread_pool import thread_pool

SOURCE: Final = "decode_cpu.c"
PANEL: Final = 32
"""Outputs of a matrix that lie side by side."""

Precision = Literal["fp32", "bf16", "int8"]
KINDS: Final = ("fp32", "bf16", "int8")
_STORED: Final = (*KINDS, "fp16")
"""By their numbers in C."""


def unsupported_reason(like: Tensor) -> str | None:
    """Why no compiled step can take networks with tensors like this one, in words; None where it can."""
    if like.device.type != "cpu":
        return f"the step is compiled for the CPU, and the tensors are on {like.device.type}"
    if like.dtype != torch.float32:
        return f"the step computes in float32, not in {like.dtype}"
    return cpu_build.unsupported_reason(SOURCE)


class Affine(NamedTuple):
    """A linear layer [outputs, inputs] with its bias, or a LayerNorm."""

    weight: Tensor
    bias: Tensor


class LayerWeights(NamedTuple):
    """One layer: sandwich LayerNorms, projections of one channel or of both side by side, the MLP."""

    before: Affine
    after: Affine
    before_mlp: Affine
    after_mlp: Affine
    qkv_proj: Affine  # [channels * 3h, h]: queries, keys and values of the first channel, then of the second
    out_proj: Sequence[Affine]  # of each channel, [h, h]
    up_proj: Affine
    down_proj: Affine
    gate: Tensor | None = None  # [h], of the first channel where there are two; the other's is the rest


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class _Matrix(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("outputs", "inputs", "kind")),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("before", "after", "before_mlp", "after_mlp")),
        *((name, _Matrix) for name in ("inward", "widen", "narrow", "first_outward", "second_outward")),
        ("share", ctypes.c_void_p),
    )


class _Net(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "hidden", "heads", "channels")),
        ("layer", ctypes.POINTER(_Layer)),
        ("final", _Norm),
        ("words", ctypes.c_void_p),
    )


class _Arena(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("capacity", ctypes.c_int64))


class PackedMatrix:
    """A linear layer packed for few rows. `precision`: of the weights; int8 has one scale for each output.

    fp32 means the numbers as they are: in 16 bits where these hold them all.
    """

    def __init__(self, affine: Affine, precision: Precision = "fp32") -> None:
        outputs, inputs = affine.weight.shape
        missing = -outputs % PANEL
        weight = F.pad(affine.weight.detach().float(), (0, 0, 0, missing))
        self.bias = F.pad(affine.bias.detach().float(), (0, missing)).contiguous()
        self.scale = (weight.abs().amax(1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        self.stored = "fp16" if precision == "fp32" and _fits_half(weight) else precision
        if precision == "int8":
            weight = (weight / self.scale[:, None]).round_().to(torch.int8)
        elif self.stored == "fp16":
            weight = weight.half()
        elif precision == "bf16":
            weight = weight.to(torch.bfloat16)
        self.weight = weight.view(-1, PANEL, inputs).transpose(1, 2).contiguous()  # [panels, inputs, PANEL]
        self.outputs = outputs
        pointers = (tensor.data_ptr() for tensor in (self.weight, self.scale, self.bias))
        self.described = _Matrix(*pointers, outputs, inputs, _STORED.index(self.stored))

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Tensor, threads: int = 1) -> Tensor:
        """x [R, inputs] fp32 -> [R, outputs]."""
        x = x.contiguous()
        out = torch.empty(len(x), len(self.weight) * PANEL)
        ours, helpers = (ctypes.byref(self.described), *_pointers(x, out)), thread_pool(threads)
        product = cpu_build.library(SOURCE).product
        helpers.run(
            [
                partial(product, *ours, *map(ctypes.c_int64, (len(x), *panels)))
                for panels in helpers.split(len(self.weight), len(x) * self.weight.numel())
            ]
        )
        return out[:, : self.outputs]


class KVBuffers:
    """Where keys and values of a batch are kept: for each layer one tensor [2, B, heads, capacity, d] a channel."""

    def __init__(self, layers: Sequence[Sequence[Tensor]]) -> None:
        flat = [arena for layer in layers for arena in layer]
        if not all(arena.is_contiguous() and arena.dtype == torch.float32 for arena in flat):
            raise ValueError("the compiled step writes into contiguous tensors of float32")
        self.kept = flat
        self.widest = max(arena.shape[3] for arena in flat)
        self.described = (_Arena * len(flat))(*(_Arena(arena.data_ptr(), arena.shape[3]) for arena in flat))


class NativeNetwork:
    """All layers of a network, packed. `words` [vocabulary, h]: its word embeddings."""

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        final: Affine,
        words: Tensor,
        heads: int,
        channels: int,
        precision: Precision = "fp32",
    ) -> None:
        self._kept: list[Any] = []
        self.hidden, self.heads, self.channels = words.shape[1], heads, channels
        packed = (_Layer * len(layers))(*(self._layer(layer, precision) for layer in layers))
        words = words.detach().contiguous()
        self._kept += [packed, words]
        self._multiplications = sum(
            kept.weight.numel() for kept in self._kept if isinstance(kept, PackedMatrix)
        )  # a slot's
        sizes = (len(layers), self.hidden, heads, channels)
        pointer = ctypes.cast(packed, ctypes.POINTER(_Layer))
        self._net = _Net(*sizes, pointer, self._norm(final), words.data_ptr())
        self.described = ctypes.byref(self._net)
        """For C."""

    @property
    def nbytes(self) -> int:
        """Of the matrices."""
        return sum(kept.nbytes for kept in self._kept if isinstance(kept, PackedMatrix))

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        arenas: KVBuffers,
        spans: Sequence[int],
        text: Tensor | None = None,
        threads: int = 1,
    ) -> Tensor:
        """ids [B, Q] int64, positions [Q, h] -> hidden states after the final LayerNorm [B, Q, h].

        spans: for each slot the first place that it sees and the one behind the last, which is its own, in its frame's
        channel; then the same across frames on even layers, and on odd ones (6 * Q numbers). Slots of one step may see
        each other: all are kept before any attends. text [B, T]: added to the scores of the first T places of a span.
        Rows are divided among `threads`; a row's numbers do not depend on it.
        """
        (batch, slots), ids, positions = ids.shape, ids.contiguous(), positions.contiguous()
        if len(spans) != 6 * slots or max(spans) > arenas.widest:
            raise ValueError(f"{len(spans)} numbers of spans for {slots} slots and {arenas.widest} places")
        out = torch.empty(batch, slots, self.hidden)
        library, helpers = cpu_build.library(SOURCE), thread_pool(threads)
        words = None if text is None else text.contiguous()
        where = (
            (ctypes.c_int64 * len(spans))(*spans),
            arenas.described,
            None if words is None else ctypes.c_void_p(words.data_ptr()),
            ctypes.c_int64(0 if words is None else words.shape[1]),
        )
        what = (self.described, *_pointers(ids, positions, out))
        pieces = []
        for first, last in helpers.split(batch, batch * slots * self._multiplications):
            rows = last - first
            size = library.scratch_size(*map(ctypes.c_int64, (self.hidden, rows * slots, arenas.widest)))
            sizes = map(ctypes.c_int64, (batch, first, rows, slots))
            pieces.append(partial(_step, library, (*what, *sizes, *where), torch.empty(size)))
        helpers.run(pieces)
        return out

    def _layer(self, layer: LayerWeights, precision: Precision) -> _Layer:
        norms = (layer.before, layer.after, layer.before_mlp, layer.after_mlp)
        linears = (layer.qkv_proj, layer.up_proj, layer.down_proj, *layer.out_proj)
        matrices = [PackedMatrix(affine, precision) for affine in linears]
        share = None if layer.gate is None else layer.gate.detach().float().contiguous()
        self._kept += [*matrices, share]
        described = [matrix.described for matrix in matrices] + [_Matrix()] * (2 - len(layer.out_proj))
        return _Layer(*map(self._norm, norms), *described, None if share is None else share.data_ptr())

    def _norm(self, affine: Affine) -> _Norm:
        tensors = [tensor.detach().float().contiguous() for tensor in affine]
        self._kept += tensors
        return _Norm(*(tensor.data_ptr() for tensor in tensors))


def _step(library: ctypes.CDLL, arguments: tuple[Any, ...], scratch: Tensor) -> None:
    library.step(*arguments, *_pointers(scratch))


def _fits_half(weight: Tensor) -> bool:
    """Whether every number is one of fp16, and finite."""
    half = weight.half()
    return bool(half.isfinite().all()) and torch.equal(half.float(), weight)


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
