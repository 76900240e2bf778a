"""The door to a linear layer with weights of 8 bits, for the few rows of decoding: read half, compute as before.

One scale for each output. `Int8Linear` is the module; `linear` chooses the fast kernel if
`unsupported_reason` is None.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from kernels.reference import int8_linear
from kernels.triton_support import triton_unsupported_reason

MOST_ROWS: Final = 64
"""Above, reading weights is no longer what takes the time, and a large product of unpacked weights is faster."""


def unsupported_reason(x: Tensor, weight: Tensor) -> str | None:
    """Why the fast kernel cannot multiply x [.., K] with weight int8 [N, K], in words; None where it can."""
    rows = x.numel() // max(1, x.shape[-1])
    if not 1 <= rows <= MOST_ROWS:
        return f"the kernel takes 1 to {MOST_ROWS} rows, not {rows}"
    if not weight.is_contiguous():
        return "the kernel reads weights whose rows lie side by side"
    if torch.is_grad_enabled() and x.requires_grad:
        return "the kernel computes no gradients"
    return triton_unsupported_reason(x)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> int8 [N, K] and scale fp32 [N], weight nearly int8 * scale; a row of zeros has scale 1."""
    largest = weight.detach().float().abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (weight.detach().float() / scale[:, None]).round_().to(torch.int8), scale


def linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [.., K] times (weight int8 [N, K] * scale [N]), plus bias [N] -> [.., N] in the type of x."""
    if unsupported_reason(x, weight) is not None:
        return int8_linear(x, weight, scale, bias)
    from kernels.w8a16_triton import linear as fast

    return fast(x, weight, scale, bias)


class Int8Linear(nn.Module):
    """A linear layer that keeps its weight [N, K] in 8 bits; not for training."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        small, scale = quantize_rows(weight)
        self.register_buffer("weight", small)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach())

    def _apply(self, fn: Any, recurse: bool = True) -> Int8Linear:
        """Moves like any module, but the scales stay fp32 when the model is given another type."""
        scale = self.scale
        super()._apply(fn, recurse)
        self.scale = scale.to(self.scale.device)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x [.., K] -> [.., N]."""
        return linear(x, self.weight, self.scale, self.bias)
