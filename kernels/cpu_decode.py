"""Compiled decoding step: all layers of a network for one or more slots of every row, in one call.

A network is packed once into `NativeNetwork`. The PyTorch form of the step is in `cogvideo.models.fused_decode`, for
use if `unsupported_reason` is not None. Weights may be stored in fewer bits; sums are always fp32. Weights that fp16
represents exactly, such as those of a published checkpoint, are stored in fp16 even if fp32 is requested. The numbers
are the same, in half the memory.
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
"""Outputs of a matrix that are adjacent in memory."""

Precision = Literal["fp32", "bf16", "int8"]
KINDS: Final = ("fp32", "bf16", "int8")
_STORED: Final = (*KINDS, "fp16")
"""In the order of their numbers in C."""


def unsupported_reason(like: Tensor) -> str | None:
    """Return why the compiled step does not support networks with tensors like this one. None if it does."""
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
    """Weights of one layer: sandwich LayerNorms, projections of one channel or both (concatenated), the MLP."""

    before: Affine
    after: Affine
    before_mlp: Affine
    after_mlp: Affine
    qkv_proj: Affine  # [channels * 3h, h]: queries, keys and values of the first channel, then of the second
    out_proj: Sequence[Affine]  # for each channel, [h, h]
    up_proj: Affine
    down_proj: Affine
    gate: Tensor | None = None  # [h], weight of the first of two channels; the second has 1 - gate


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
    """A linear layer packed for products with few rows.

    `precision`: of the weights. int8 has one scale for each output. fp32 stores exact numbers: in fp16 if it
    represents all of them.
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
        """Apply the layer: x [R, inputs] fp32 -> [R, outputs]."""
        x = x.contiguous()
        out = torch.empty(len(x), len(self.weight) * PANEL)
        arguments, pool = (ctypes.byref(self.described), *_pointers(x, out)), thread_pool(threads)
        product = cpu_build.library(SOURCE).product
        pool.run(
            [
                partial(product, *arguments, *map(ctypes.c_int64, (len(x), *panels)))
                for panels in pool.split(len(self.weight), len(x) * self.weight.numel())
            ]
        )
        return out[:, : self.outputs]


class KVBuffers:
    """Keys and values of a batch: for each layer and channel one tensor [2, B, heads, capacity, d].

    Raises ValueError unless the tensors are contiguous and float32.
    """

    def __init__(self, layers: Sequence[Sequence[Tensor]]) -> None:
        flat = [buffer for layer in layers for buffer in layer]
        if not all(buffer.is_contiguous() and buffer.dtype == torch.float32 for buffer in flat):
            raise ValueError("the compiled step requires contiguous float32 buffers")
        self.kept = flat
        self.widest = max(buffer.shape[3] for buffer in flat)
        self.described = (_Arena * len(flat))(*(_Arena(buffer.data_ptr(), buffer.shape[3]) for buffer in flat))


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
        self._references: list[Any] = []  # keep alive what C has pointers to
        self.hidden, self.heads, self.channels = words.shape[1], heads, channels
        packed = (_Layer * len(layers))(*(self._layer(layer, precision) for layer in layers))
        words = words.detach().contiguous()
        self._references += [packed, words]
        matrices = [each for each in self._references if isinstance(each, PackedMatrix)]
        self._multiplications = sum(matrix.weight.numel() for matrix in matrices)  # for one slot
        sizes = (len(layers), self.hidden, heads, channels)
        pointer = ctypes.cast(packed, ctypes.POINTER(_Layer))
        self._net = _Net(*sizes, pointer, self._norm(final), words.data_ptr())
        self.described = ctypes.byref(self._net)
        """Pointer to the C structure."""

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return sum(each.nbytes for each in self._references if isinstance(each, PackedMatrix))

    def run(
        self,
        ids: Tensor,
        positions: Tensor,
        arenas: KVBuffers,
        spans: Sequence[int],
        text: Tensor | None = None,
        threads: int = 1,
    ) -> Tensor:
        """Compute the hidden states after the final LayerNorm [B, Q, h] from ids [B, Q] int64, positions [Q, h].

        spans, 6 * Q numbers: start and end (exclusive) of each slot's keys. First those of the spatial channel, then of
        the temporal channel on even layers, then on odd layers. The last key is the slot's own. Slots of one step may
        attend to each other: all keys are written before attention. text [B, T]: added to the scores of the first T
        keys of a span. Rows are divided among `threads`, without effect on the results.

        Raises ValueError if `spans` does not fit.
        """
        (batch, slots), ids, positions = ids.shape, ids.contiguous(), positions.contiguous()
        if len(spans) != 6 * slots or max(spans) > arenas.widest:
            raise ValueError(f"{len(spans)} numbers of spans for {slots} slots and a capacity of {arenas.widest}")
        out = torch.empty(batch, slots, self.hidden)
        library, pool = cpu_build.library(SOURCE), thread_pool(threads)
        words = None if text is None else text.contiguous()
        cache_arguments = (
            (ctypes.c_int64 * len(spans))(*spans),
            arenas.described,
            None if words is None else ctypes.c_void_p(words.data_ptr()),
            ctypes.c_int64(0 if words is None else words.shape[1]),
        )
        tensor_arguments = (self.described, *_pointers(ids, positions, out))
        tasks = []
        for first, last in pool.split(batch, batch * slots * self._multiplications):
            rows = last - first
            size = library.scratch_size(*map(ctypes.c_int64, (self.hidden, rows * slots, arenas.widest)))
            sizes = map(ctypes.c_int64, (batch, first, rows, slots))
            tasks.append(partial(_step, library, (*tensor_arguments, *sizes, *cache_arguments), torch.empty(size)))
        pool.run(tasks)
        return out

    def _layer(self, layer: LayerWeights, precision: Precision) -> _Layer:
        norms = (layer.before, layer.after, layer.before_mlp, layer.after_mlp)
        linears = (layer.qkv_proj, layer.up_proj, layer.down_proj, *layer.out_proj)
        matrices = [PackedMatrix(affine, precision) for affine in linears]
        gate = None if layer.gate is None else layer.gate.detach().float().contiguous()
        self._references += [*matrices, gate]
        described = [matrix.described for matrix in matrices] + [_Matrix()] * (2 - len(layer.out_proj))
        return _Layer(*map(self._norm, norms), *described, None if gate is None else gate.data_ptr())

    def _norm(self, affine: Affine) -> _Norm:
        tensors = [tensor.detach().float().contiguous() for tensor in affine]
        self._references += tensors
        return _Norm(*(tensor.data_ptr() for tensor in tensors))


def _step(library: ctypes.CDLL, arguments: tuple[Any, ...], scratch: Tensor) -> None:
    library.step(*arguments, *_pointers(scratch))


def _fits_half(weight: Tensor) -> bool:
    """Return whether fp16 represents every number exactly."""
    half = weight.half()
    return bool(half.isfinite().all()) and torch.equal(half.float(), weight)


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
