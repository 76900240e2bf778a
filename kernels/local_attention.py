"""The door to local attention: the Triton kernel where it can run, plain PyTorch elsewhere; the same function."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil

import torch

from kernels import reference
from kernels.reference import Size

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_HEAD = 256
"""Bytes of one head's vector; what a tile of wider ones takes does not fit into a small card's shared memory."""


def why_not(q: torch.Tensor) -> str | None:
    """Why the fast kernel cannot take queries like `q`, in words; None where it can."""
    if not _has_triton():
        return "triton is not installed (it exists for Linux only)"
    if q.dtype not in DTYPES:
        return f"the kernel computes in float32, float16 and bfloat16, not in {q.dtype}"
    if q.shape[-1] * q.element_size() > LARGEST_HEAD:
        return f"heads of {q.shape[-1]} are wider than the {LARGEST_HEAD // q.element_size()} that fit on the chip"
    if _interpreted():
        return None
    if not _has_compiler():
        return "there is no C compiler, which triton starts its kernels with (apt install gcc)"
    if not q.is_cuda:
        return f"the tensors are on {q.device.type}; the kernel runs on NVIDIA cards"
    if torch.cuda.get_device_capability(q.device) < (7, 5):
        return "the card is older than Turing (compute capability 7.5)"
    if q.dtype == torch.bfloat16 and torch.cuda.get_device_capability(q.device) < (8, 0):
        return "bfloat16 takes an Ampere card or newer (compute capability 8.0)"
    return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _has_compiler() -> bool:
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def _interpreted() -> bool:
    """Whether Triton was told to interpret its kernels on the CPU (the environment says TRITON_INTERPRET=1)."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def local_attention(
    q: torch.Tensor,
    k_fine: torch.Tensor,
    v_fine: torch.Tensor,
    k_coarse: torch.Tensor,
    v_coarse: torch.Tensor,
    fine_grid: Size,
    coarse_grid: Size,
    fine_window: Size = (9, 5),
    coarse_window: Size = (5, 5),
) -> torch.Tensor:
    """As `kernels.reference.local_attention`: q, k_fine, v_fine [B, heads, Hf*Wf, d], k_coarse, v_coarse
    [B, heads, Hc*Wc, d] -> [B, heads, Hf*Wf, d]; windows and grids are (height, width). ValueError where they disagree.
    """
    shapes = (fine_grid, coarse_grid, fine_window, coarse_window)
    if why_not(q) is not None:
        return reference.local_attention(q, k_fine, v_fine, k_coarse, v_coarse, *shapes)
    from kernels.local_attention_triton import LocalAttention

    reference.check_shapes(q, k_fine, v_fine, k_coarse, v_coarse, *shapes)
    tensors = [t if t.stride(-1) == 1 else t.contiguous() for t in (q, k_fine, v_fine, k_coarse, v_coarse)]
    out: torch.Tensor = LocalAttention.apply(*tensors, *shapes)
    return out
