"""Local attention: the Triton kernel if it is supported, else plain PyTorch."""

from __future__ import annotations

import torch

from kernels import reference
from kernels.reference import LocalWindows
from kernels.triton_support import triton_unsupported_reason

LARGEST_HEAD = 256
"""Maximum bytes of one head's vector. Tiles of wider heads do not fit a small GPU's shared memory."""


def unsupported_reason(q: torch.Tensor) -> str | None:
    """Return why the fast kernel does not support queries like `q`. None if it does."""
    if q.shape[-1] * q.element_size() > LARGEST_HEAD:
        return f"heads of {q.shape[-1]} are wider than the {LARGEST_HEAD // q.element_size()} that fit shared memory"
    return triton_unsupported_reason(q)


def local_attention(
    q: torch.Tensor,
    k_fine: torch.Tensor,
    v_fine: torch.Tensor,
    k_coarse: torch.Tensor,
    v_coarse: torch.Tensor,
    windows: LocalWindows,
) -> torch.Tensor:
    """Compute `kernels.reference.local_attention`, [B, heads, Hf*Wf, d], with the fast kernel if possible.

    q, k_fine, v_fine [B, heads, Hf*Wf, d], k_coarse, v_coarse [B, heads, Hc*Wc, d]. Windows and grids are (height,
    width). Raises ValueError if the shapes do not fit each other.
    """
    if unsupported_reason(q) is not None:
        return reference.local_attention(q, k_fine, v_fine, k_coarse, v_coarse, windows)
    from kernels.local_attention_triton import LocalAttention

    reference.check_shapes(q, k_fine, v_fine, k_coarse, v_coarse, windows)
    tensors = [t if t.stride(-1) == 1 else t.contiguous() for t in (q, k_fine, v_fine, k_coarse, v_coarse)]
    out: torch.Tensor = LocalAttention.apply(*tensors, windows)
    return out
