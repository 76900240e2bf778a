"""Requirements of all Triton kernels on the machine and the tensors, as reasons for logs and tables."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def triton_unsupported_reason(tensor: torch.Tensor) -> str | None:
    """Return why Triton kernels do not support tensors like this one. None if they do."""
    if not _has_triton():
        return "triton is not installed (it exists for Linux only)"
    if tensor.dtype not in DTYPES:
        return f"the kernel computes in float32, float16 and bfloat16, not in {tensor.dtype}"
    if _interpreted():
        return None
    if not _has_compiler():
        return "there is no C compiler, which triton requires to launch kernels (apt install gcc)"
    if not tensor.is_cuda:
        return f"the tensors are on {tensor.device.type}; the kernel runs on NVIDIA GPUs only"
    if torch.cuda.get_device_capability(tensor.device) < (7, 5):
        return "the GPU is older than Turing (compute capability 7.5)"
    if tensor.dtype == torch.bfloat16 and torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return "bfloat16 requires an Ampere GPU or newer (compute capability 8.0)"
    return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _has_compiler() -> bool:
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def _interpreted() -> bool:
    """Return whether Triton interprets its kernels on the CPU (environment variable TRITON_INTERPRET=1)."""
    from triton import knobs

    return bool(knobs.runtime.interpret)
