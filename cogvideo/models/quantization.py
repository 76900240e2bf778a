"""Quantization of linear layers to 8 or 4 bits a weight.

In: a network with exact weights. Out: the same network. Embeddings, norms and gates are not changed. Each quantized
layer is compared with its exact weights. It stays exact if the error of a row exceeds `BOUNDS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.config import WeightFormat
from kernels.w8a16 import Int8Linear

LOG = logging.getLogger(__name__)

BOUNDS: Final[dict[str, float]] = {"int8": 0.1, "bnb8": 0.1, "nf4": 0.25}
"""Maximum relative error of a row of a compressed layer: |restored row - row| / |row|.

This is the relative error (root mean square) of that row's output for uncorrelated inputs. The worst row counts, since
the mean over a matrix hides small rows behind large ones.

NF4: the worst row of normally distributed weights has an error of 10 to 12 %, that of `mini` 19 %. With exact scales
of its own no row exceeds 34 %. Scales that an outlier or a larger neighbour dominates give 60 % and more. 8 bits: the
worst row of normally distributed weights has an error of 1 %, that of `mini` 3 %. If 8 bits are less accurate than 4
bits usually are, they have no advantage."""

ROWS_AT_ONCE: Final = 256
"""Rows that are compared at a time, to limit the memory of the comparison."""

LISTED: Final = 5
"""Maximum layers in a log entry, the worst first."""


@dataclass(frozen=True)
class Compression:
    """The result of compressing a model: the layers that stay exact because a row would exceed its bound."""

    layers: int = 0
    """Layers to compress. 0 if the memory preset has exact weights."""
    exact: tuple[tuple[str, float], ...] = ()
    """(name, relative error of the worst row) of each layer with exact weights."""
    full_scales: tuple[str, ...] = ()
    """Layers in 4 bits with fp32 scales, since 8-bit scales exceed the bound."""
    extra_bytes: int = 0
    """Bytes of these layers beyond the estimate, which assumes the smallest form of every layer."""

    def sentences(self) -> tuple[str, str]:
        """Return the counts as a message (zh, en)."""
        zh = f"{self.layers} 个线性层中有 {len(self.exact)} 个保留精确权重"
        en = f"{len(self.exact)} of {self.layers} layers keep exact weights"
        if self.full_scales:
            zh += f"，{len(self.full_scales)} 个的缩放系数为全精度"
            en += f", {len(self.full_scales)} have scales in full precision"
        if self.extra_bytes:
            zh += f"，最多比预测多占 {self.extra_bytes / 1e9:.3g} GB"
            en += f", at most {self.extra_bytes / 1e9:.3g} GB more than predicted"
        return f"{zh}。", f"{en}."

    def after(self, notes: tuple[str, str] | None) -> tuple[str, str] | None:
        """Return `notes` (zh, en), followed by the counts if any layer takes more memory than predicted."""
        if not self.extra_bytes:
            return notes
        zh, en = self.sentences()
        return (f"{notes[0]}{zh}", f"{notes[1]} {en}") if notes else (zh, en)


class Compressor:
    """Compressor of a model's networks, which may share layers. It counts the layers that stay exact.

    Layers compute in `dtype`, are quantized on `device` and stored on the `store` of each call.
    """

    def __init__(self, weights: WeightFormat, device: torch.device, dtype: torch.dtype) -> None:
        self._weights, self._device, self._dtype = weights, device, dtype
        self._layers = self._extra_bytes = 0
        self._exact: dict[int, tuple[str, float]] = {}  # by the id of the layer, which is not replaced
        self._full_scales: list[str] = []

    @property
    def result(self) -> Compression:
        """The result so far."""
        exact = sorted(self._exact.values(), key=lambda layer: -layer[1])
        return Compression(self._layers, tuple(exact), tuple(self._full_scales), self._extra_bytes)

    def compress(self, network: nn.Module, name: str = "", store: torch.device | None = None) -> None:
        """Compress all layers of `network` in place, one after the other.

        `name` precedes the layers' names in the log. `store` None: the device. Layers of a shared backbone that were
        processed before are skipped.
        """
        if self._weights == "exact":
            return
        for parent, path, layer in list(linear_layers(network)):
            if id(layer) not in self._exact:
                compressed = self._compressed(layer, f"{name}.{path}" if name else path)
                if compressed is not None:
                    compressed = compressed.to(store or self._device).requires_grad_(False)
                    setattr(parent, path.rpartition(".")[2], compressed)

    def log(self) -> None:
        """Log the counts and the worst of the layers that stay exact."""
        result = self.result
        if not result.layers:
            return
        LOG.info("%s: %s", self._weights, result.sentences()[1])
        if result.exact:
            worst = ", ".join(f"{name} ({error:.0%})" for name, error in result.exact[:LISTED])
            bound = BOUNDS[self._weights]
            LOG.warning("Exact because a row's error in %s exceeds %.0f %%: %s", self._weights, 100 * bound, worst)

    def _compressed(self, layer: Any, name: str) -> nn.Module | None:
        """Return the smallest form of `layer` within the bound. None if there is none."""
        self._layers += 1
        weight = layer.weight.detach().to(self._device, self._dtype)
        bias = layer.bias.detach().to(self._device, self._dtype)
        least, error = 0, 0.0
        for number, make in enumerate(_MAKERS[self._weights]):
            compressed = make(weight, bias)
            least = least or _bytes(compressed)
            error = worst_row_error(weight, unpacked(compressed, self._dtype))
            if error <= BOUNDS[self._weights]:
                self._extra_bytes += _bytes(compressed) - least
                if number:
                    self._full_scales.append(name)
                return compressed
            del compressed  # frees its memory before the next form is built
        self._extra_bytes += weight.nbytes + bias.nbytes - least
        self._exact[id(layer)] = name, error
        return None


def worst_row_error(exact: Tensor, restored: Tensor) -> float:
    """Return the largest |restored row - row| / |row| of two matrices [out, in]. Infinite if a number is not finite."""
    worst = 0.0
    for rows, restored_rows in zip(exact.split(ROWS_AT_ONCE), restored.split(ROWS_AT_ONCE), strict=True):
        expected = rows.double()
        error, size = (restored_rows.double() - expected).norm(dim=1), expected.norm(dim=1)
        relative = torch.where(error == 0, error, error / size)  # a row of zeros must be restored exactly
        worst = max(worst, float(relative.nan_to_num(nan=torch.inf, posinf=torch.inf).max()))
    return worst


def unpacked(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return the matrix [out, in] in `dtype` that a compressed layer multiplies by."""
    if isinstance(layer, Int8Linear | Nf4Linear):
        return layer.unpacked(dtype)
    return (layer.weight.detach() * (layer.weight.SCB / 127)[:, None]).to(dtype)  # LLM.int8


def linear_layers(network: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield (parent, path, layer) for all linear layers with floating-point weights."""
    for path, parent in network.named_modules():
        for name, layer in parent.named_children():
            weight = getattr(layer, "weight", None)
            if weight is None or weight.ndim != 2 or not weight.is_floating_point() or isinstance(layer, nn.Embedding):
                continue
            if getattr(layer, "bias", None) is not None:  # sat's embedding has none and is no product
                yield parent, f"{path}.{name}" if path else name, layer


class Nf4Linear(nn.Module):
    """Linear layer with 4 bits a weight (NF4 of bitsandbytes): 4.13 bits in all with 8-bit scales, 4.5 with fp32."""

    BLOCK = 64
    """Weights that share a scale. Blocks divide the flat matrix, so that one may span two rows."""
    OUTER_BLOCK = 256
    """Scales that share an outer scale."""

    def __init__(self, shape: torch.Size, weight: Tensor, bias: Tensor, tables: dict[str, Tensor]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("weight", weight)  # uint8: two weights a byte
        self.register_buffer("bias", bias)
        for name, tensor in tables.items():
            self.register_buffer(name, tensor)
        self.small_scales = "outer_scales" in tables

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Nf4Linear:
        """Quantize a matrix [out, in] with 8-bit scales; the bias [out] stays exact.

        The library's `compress_statistics` is not used: it subtracts the mean of the scales first, which spoils small
        scales (findings/bitsandbytes_nf4_compress_statistics.sh) and gains 0.03 percentage points on `mini`.
        """
        codes, state = cls._quantize(weight)
        scales, outer = _bitsandbytes().functional.quantize_blockwise(state.absmax, blocksize=cls.OUTER_BLOCK)
        tables = {"outer_scales": outer.absmax, "outer_code": outer.code, "offset": torch.zeros_like(outer.absmax[0])}
        return cls(weight.shape, codes, bias, {"scales": scales, "code": state.code, **tables})

    @classmethod
    def with_full_scales(cls, weight: Tensor, bias: Tensor) -> Nf4Linear:
        """Quantize a matrix [out, in] with fp32 scales; the bias [out] stays exact."""
        codes, state = cls._quantize(weight)
        return cls(weight.shape, codes, bias, {"scales": state.absmax, "code": state.code})

    @classmethod
    def _quantize(cls, weight: Tensor) -> tuple[Tensor, Any]:
        codes_and_state: tuple[Tensor, Any] = _bitsandbytes().functional.quantize_4bit(
            weight, quant_type="nf4", blocksize=cls.BLOCK, compress_statistics=False
        )
        return codes_and_state

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [..., in] -> [..., out]."""
        bias: Tensor = self.get_buffer("bias").to(x.dtype)
        # On a CPU the library's product is slower, or needs a download. On a GPU it requires rows of whole blocks.
        if x.device.type == "cpu" or self.shape[1] % self.BLOCK:
            return F.linear(x, self.unpacked(x.dtype), bias)
        state = self._state(x.dtype, self.shape)
        product: Tensor = _bitsandbytes().matmul_4bit(x, self.get_buffer("weight"), quant_state=state, bias=bias)
        return product

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """Return the weights [out, in].

        The library receives rows of one block each, or a single row. Its CPU kernel reads wrong scales in longer rows
        that are not a multiple of a block (findings/bitsandbytes_nf4_cpu_rows.sh).
        """
        count = self.shape.numel()
        rows = (1, count) if count % self.BLOCK else (count // self.BLOCK, self.BLOCK)
        state = self._state(dtype, torch.Size(rows))
        weight: Tensor = _bitsandbytes().functional.dequantize_4bit(self.get_buffer("weight"), state)
        return weight.view(self.shape)

    def _state(self, dtype: torch.dtype, shape: torch.Size) -> Any:
        """Return the library's description of the codes, built from buffers, which move together with the module."""
        state = _bitsandbytes().functional.QuantState
        nested = {}
        if self.small_scales:
            absmax, code = self.get_buffer("outer_scales"), self.get_buffer("outer_code")
            outer = state(absmax=absmax, code=code, blocksize=self.OUTER_BLOCK, dtype=torch.float32)
            nested = {"offset": self.get_buffer("offset"), "state2": outer}
        return state(
            absmax=self.get_buffer("scales"),
            shape=shape,
            code=self.get_buffer("code"),
            blocksize=self.BLOCK,
            quant_type="nf4",
            dtype=dtype,
            **nested,
        )


def _llm_int8(weight: Tensor, bias: Tensor) -> nn.Module:
    """Return a layer of LLM.int8 without outlier columns (Dettmers et al. 2022), with activations in 8 bits too."""
    nn_ = _bitsandbytes().nn
    outputs, inputs = weight.shape
    layer: Any = nn_.Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=0.0, device="meta")
    layer.weight = nn_.Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    moved: nn.Module = layer.to(weight.device)  # the library computes the codes in this call
    return moved


def _bitsandbytes() -> Any:
    """Import the library, without its warning that a kernel cannot be downloaded."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import bitsandbytes
    finally:
        logging.disable(before)
    return bitsandbytes


def _bytes(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*layer.parameters(), *layer.buffers()))


_MAKERS: Final[dict[str, Sequence[Callable[[Tensor, Tensor], nn.Module]]]] = {
    "int8": (Int8Linear,),  # 8 bits a weight and a scale for every output, computed in the type of the input
    "nf4": (Nf4Linear.of, Nf4Linear.with_full_scales),
    "bnb8": (_llm_int8,),
}
"""Forms of a compressed layer, the smallest first."""
