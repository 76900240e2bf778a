"""Run with TRITON_INTERPRET=1: every kernel against its reference on the CPU; prints one JSON object of errors.

A program of its own, because Triton decides at import whether it interprets.
"""

from __future__ import annotations

import json

import torch
from test_kernels import CASES, DTYPES, Case, largest_differences

from kernels.local_attention import local_attention, why_not


def differences(case: Case, dtype: torch.dtype) -> list[float]:
    reason = why_not(torch.empty(1, 1, 1, case.head, dtype=dtype))
    assert reason is None, reason
    return largest_differences(local_attention, case, dtype)


if __name__ == "__main__":
    found = {f"{name} {dtype}": differences(case, dtype) for name, case in CASES.items() for dtype in DTYPES}
    print(json.dumps(found))
