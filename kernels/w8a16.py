"""Linear layer with 8-bit weights and 16- or 32-bit activations, for the few rows of decoding.

It reads half as much as a 16-bit layer. Each output has one scale. `Int8Linear` is the module; `linear` uses the fast
kernel if `unsupported_reason` is None.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from kernels.reference import int8_linear, unpack_int8
from kernels.triton_support import triton_unsupported_reason

MOST_ROWS: Final = 64
"""Maximum rows of the kernel. With more, reading weights no longer dominates, and unpacked weights are faster."""


def unsupported_reason(x: Tensor, weight: Tensor) -> str | None:
    """Return why the fast kernel does not support x [.., K] and weight int8 [N, K]. None if it does."""
    rows = x.numel() // max(1, x.shape[-1])
    if not 1 <= rows <= MOST_ROWS:
        return f"the kernel supports 1 to {MOST_ROWS} rows, not {rows}"
    if not weight.is_contiguous():
        return "the kernel requires contiguous weights"
    if torch.is_grad_enabled() and x.requires_grad:
        return "the kernel computes no gradients"
    return triton_unsupported_reason(x)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize weight [N, K] to int8 codes [N, K] and fp32 scales [N], weight = codes * scale approximately.

    A row of zeros has the scale 1.
    """
    largest = weight.detach().float().abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (weight.detach().float() / scale[:, None]).round_().to(torch.int8), scale


def linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [.., K] by (weight int8 [N, K] * scale [N]) and add bias [N]; return [.., N] in the type of x."""
    if unsupported_reason(x, weight) is not None:
        return int8_linear(x, weight, scale, bias)
    from kernels.w8a16_triton import linear as fast

    return fast(x, weight, scale, bias)


class Int8Linear(nn.Module):
    """A linear layer with its weight [N, K] in 8 bits. Not for training."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        codes, scale = quantize_rows(weight)
        self.register_buffer("weight", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        """Move or convert the module; the scales remain fp32."""
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.scale.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: x [.., K] -> [.., N]."""
        return linear(x, self.weight, self.scale, self.bias)

    def unpacked(self, dtype: torch.dtype) -> Tensor:
        """Return the weights [N, K]."""
        return unpack_int8(self.weight, self.scale, dtype)
