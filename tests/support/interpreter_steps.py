"""Run with TRITON_INTERPRET=1: the kernels of a decoding step on the CPU; prints one JSON object of errors.

A program of its own, because Triton decides at import whether it interprets.
"""

from __future__ import annotations

import json

import torch

from kernels import sandwich_norm, w8a16
from tests.kernels.test_gpu_decode_kernels import (
    DTYPES,
    PRODUCTS,
    SANDWICHES,
    product_difference,
    sandwich_differences,
    tokens_differ,
)


def product(name: str, dtype: torch.dtype) -> float:
    rows, inputs, outputs = PRODUCTS[name]
    reason = w8a16.unsupported_reason(
        torch.empty(rows, inputs, dtype=dtype), torch.empty(outputs, inputs, dtype=torch.int8)
    )
    assert reason is None, reason
    return product_difference(w8a16.linear, name, dtype)


def sandwich(shape: tuple[int, ...], dtype: torch.dtype) -> float:
    reason = sandwich_norm.unsupported_reason(torch.empty(shape, dtype=dtype))
    assert reason is None, reason
    return max(sandwich_differences(sandwich_norm.sandwich_norm, shape, dtype))


if __name__ == "__main__":
    found = {f"{name} {dtype}": product(name, dtype) for name in PRODUCTS for dtype in DTYPES}
    found |= {f"{shape} {dtype}": sandwich(shape, dtype) for shape in SANDWICHES for dtype in DTYPES}
    wired = {
        f"stage {stage} fused {fused}": tokens_differ(stage, fused, rows=1) for stage, fused in ((1, False), (2, True))
    }
    print(json.dumps({"errors": found, "wired": wired}))
