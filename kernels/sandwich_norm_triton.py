"""Sandwich norm in Triton: one program for each row. Imported only if `unsupported_reason` is None.

Sums are fp32. As in the reference, the second LayerNorm reads `hidden` as stored, that is, rounded.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.reference import EPSILON, Norm


@triton.jit
def _normalise(x, within, width, epsilon, W, B, c):
    mean = tl.sum(x, axis=0) / width
    off = tl.where(within, x - mean, 0.0)
    rate = 1.0 / tl.sqrt(tl.sum(off * off, axis=0) / width + epsilon)
    weight = tl.load(W + c, mask=within, other=0.0).to(tl.float32)
    bias = tl.load(B + c, mask=within, other=0.0).to(tl.float32)
    return off * rate * weight + bias


@triton.jit
def _sandwich(X, OUT, AFTER_W, AFTER_B, BEFORE_W, BEFORE_B, HIDDEN, NORMED, width, epsilon, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * width
    c = tl.arange(0, D)
    within = c < width
    out = tl.load(OUT + row + c, mask=within, other=0.0).to(tl.float32)
    x = tl.load(X + row + c, mask=within, other=0.0).to(tl.float32)
    kind = HIDDEN.dtype.element_ty
    between = _normalise(out, within, width, epsilon, AFTER_W, AFTER_B, c).to(kind).to(tl.float32)
    hidden = (x + between).to(kind)
    tl.store(HIDDEN + row + c, hidden, mask=within)
    normed = _normalise(tl.where(within, hidden.to(tl.float32), 0.0), within, width, epsilon, BEFORE_W, BEFORE_B, c)
    tl.store(NORMED + row + c, normed.to(kind), mask=within)


def sandwich_norm(x: torch.Tensor, out: torch.Tensor, after: Norm, before: Norm) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `kernels.sandwich_norm` in one launch."""
    x, out, width = x.contiguous(), out.contiguous(), x.shape[-1]
    hidden, normed = torch.empty_like(x), torch.empty_like(x)
    D = triton.next_power_of_2(width)
    warps = min(16, max(1, D // 256))
    _sandwich[(x.numel() // width,)](
        x, out, *after, *before, hidden, normed, width, EPSILON, D=D, num_warps=warps
    )  # fmt: skip
    return hidden, normed
