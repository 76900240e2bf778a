"""Quantization of linear layers to 8 or 4 bits a weight.

In: a network with exact weights. Out: the same network. Embeddings, norms and gates are not changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.config import WeightFormat
from kernels.w8a16 import Int8Linear


def quantize_linear_layers(
    network: nn.Module,
    weights: WeightFormat,
    device: torch.device,
    dtype: torch.dtype,
    store: torch.device | None = None,
) -> None:
    """Quantize the weights of all linear layers of `network`, in place, one after the other.

    They compute in `dtype`, are quantized on `device` and stored on `store` (None: on `device`). Layers of a shared
    backbone that are quantized already are skipped.
    """
    if weights == "exact":
        return
    make = _MAKERS[weights]
    for parent, name, layer in list(linear_layers(network)):
        exact = layer.weight.detach().to(device, dtype), layer.bias.detach().to(device, dtype)
        setattr(parent, name, make(*exact).to(store or device).requires_grad_(False))


def linear_layers(network: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Yield (parent, name, layer) for all linear layers with floating-point weights."""
    for parent in network.modules():
        for name, layer in parent.named_children():
            weight = getattr(layer, "weight", None)
            if weight is None or weight.ndim != 2 or not weight.is_floating_point() or isinstance(layer, nn.Embedding):
                continue
            if getattr(layer, "bias", None) is not None:  # sat's embedding has none and is no product
                yield parent, name, layer


class Nf4Linear(nn.Module):
    """A linear layer with 4 bits a weight (NF4 of bitsandbytes), the scales in 8 bits: 4.13 bits in all."""

    TABLES = ("scales", "code", "mean", "outer_scales", "outer_code")

    def __init__(self, shape: torch.Size, weight: Tensor, bias: Tensor, tables: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("weight", weight)  # uint8: two weights a byte
        self.register_buffer("bias", bias)
        for name, tensor in zip(self.TABLES, tables, strict=True):
            self.register_buffer(name, tensor)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Nf4Linear:
        """Quantize a matrix [out, in]; the bias [out] stays exact."""
        codes, state = _bitsandbytes().functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        tables = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
        return cls(weight.shape, codes, bias, tables)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: [..., in] -> [..., out]."""
        library, state = _bitsandbytes(), self._state(x.dtype)
        bias: Tensor = self.get_buffer("bias").to(x.dtype)
        weight = self.get_buffer("weight")
        if x.device.type == "cpu":  # the library's product would be slower, or need a kernel from the network
            return F.linear(x, library.functional.dequantize_4bit(weight, state), bias)
        product: Tensor = library.matmul_4bit(x, weight, quant_state=state, bias=bias)
        return product

    def _state(self, dtype: torch.dtype) -> Any:
        """Return the library's description of the codes, built from buffers, which move together with the module."""
        scales, code, mean, outer_scales, outer_code = (self.get_buffer(name) for name in self.TABLES)
        state = _bitsandbytes().functional.QuantState
        outer = state(absmax=outer_scales, code=outer_code, blocksize=256, dtype=torch.float32)
        return state(
            absmax=scales,
            shape=self.shape,
            code=code,
            blocksize=64,
            quant_type="nf4",
            dtype=dtype,
            offset=mean,
            state2=outer,
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


_MAKERS: dict[str, Callable[[Tensor, Tensor], nn.Module]] = {
    "int8": Int8Linear,  # 8 bits a weight and a scale for every output, computed in the type of the input
    "nf4": Nf4Linear.of,
    "bnb8": _llm_int8,
}
