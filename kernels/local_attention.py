"""The door to local attention: the Triton kernel where it can run, plain PyTorch elsewhere; the same function."""

from __future__ import annotations

import torch

from kernels import reference
from kernels.reference import Size
from kernels.triton_support import triton_unsupported_reason

LARGEST_HEAD = 256
"""Bytes of one head's vector; what a tile of wider ones takes does not fit into a small card's shared memory."""


def unsupported_reason(q: torch.Tensor) -> str | None:
    """Why the fast kernel cannot take queries like `q`, in words; None where it can."""
    if q.shape[-1] * q.element_size() > LARGEST_HEAD:
        return f"heads of {q.shape[-1]} are wider than the {LARGEST_HEAD // q.element_size()} that fit on the chip"
    return triton_unsupported_reason(q)


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
    if unsupported_reason(q) is not None:
        return reference.local_attention(q, k_fine, v_fine, k_coarse, v_coarse, *shapes)
    from kernels.local_attention_triton import LocalAttention

    reference.check_shapes(q, k_fine, v_fine, k_coarse, v_coarse, *shapes)
    tensors = [t if t.stride(-1) == 1 else t.contiguous() for t in (q, k_fine, v_fine, k_coarse, v_coarse)]
    out: torch.Tensor = LocalAttention.apply(*tensors, *shapes)
    return out
