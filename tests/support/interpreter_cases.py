"""Run with TRITON_INTERPRET=1: every kernel against its reference on the CPU; prints one JSON object of errors.

A program of its own, because Triton decides at import whether it interprets.
"""

from __future__ import annotations

import json

import torch

from kernels import decode_attention, local_attention
from tests.kernels.test_attention_kernels import (
    CASES,
    DTYPES,
    STEPS,
    Case,
    Step,
    channels,
    decode_differences,
    largest_differences,
)


def local(case: Case, dtype: torch.dtype) -> list[float]:
    reason = local_attention.unsupported_reason(torch.empty(1, 1, 1, case.head, dtype=dtype))
    assert reason is None, reason
    return largest_differences(local_attention.local_attention, case, dtype)


def decode(step: Step, dtype: torch.dtype) -> list[float]:
    reason = decode_attention.unsupported_reason(channels(step, dtype))
    assert reason is None, reason
    return decode_differences(decode_attention.decode_attention, step, dtype)


if __name__ == "__main__":
    found = {f"{name} {dtype}": local(case, dtype) for name, case in CASES.items() for dtype in DTYPES}
    found |= {f"{name} {dtype}": decode(step, dtype) for name, step in STEPS.items() for dtype in DTYPES}
    print(json.dumps(found))
