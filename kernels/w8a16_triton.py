"""Product with 8-bit weights in Triton, for 1 to 64 rows. Imported only if `w8a16.unsupported_reason` is None.

A program computes a few outputs of all rows. It reads its part of the weights once, as bytes, and converts it to the
type of x on the chip. Sums are fp32, in an order that does not depend on the number of rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
OUTPUTS, INPUTS = 16, 128


@triton.jit
def _product(
    X, WEIGHTS, SCALE, BIAS, Y, rows, outputs, inputs,
    BIASED: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    r = tl.arange(0, ROWS)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    k = tl.arange(0, INPUTS)
    row_valid, output_valid = r < rows, n < outputs
    at = n.to(tl.int64)[:, None] * inputs
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    for first in range(0, inputs, INPUTS):
        within = first + k < inputs
        x = tl.load(X + r[:, None] * inputs + first + k[None, :], mask=row_valid[:, None] & within[None, :], other=0.0)
        w = tl.load(WEIGHTS + at + first + k[None, :], mask=output_valid[:, None] & within[None, :], other=0)
        if INTERPRETED:  # the interpreter treats bfloat16 as integers
            x = x.to(tl.float32)
        w = w.to(x.dtype)  # whole numbers up to 127 are exact in every type
        total += tl.dot(x, tl.trans(w), input_precision="ieee")
    y = total * tl.load(SCALE + n, mask=output_valid, other=0.0)[None, :]
    if BIASED:
        y += tl.load(BIAS + n, mask=output_valid, other=0.0).to(tl.float32)[None, :]
    to = Y + r[:, None] * outputs + n[None, :]
    tl.store(to, y.to(Y.dtype.element_ty), mask=row_valid[:, None] & output_valid[None, :])


def linear(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute `kernels.w8a16.linear` in one launch."""
    x = x.contiguous()
    (outputs, inputs), rows = weight.shape, x.numel() // x.shape[-1]
    y = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    _product[(triton.cdiv(outputs, OUTPUTS),)](
        x, weight, scale, scale if bias is None else bias, y, rows, outputs, inputs,
        BIASED=bias is not None, ROWS=max(16, triton.next_power_of_2(rows)), OUTPUTS=OUTPUTS, INPUTS=INPUTS,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return y
