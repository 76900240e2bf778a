"""Sandwich norm, the work between two products of a layer: a LayerNorm, the residual sum, and the next LayerNorm.

hidden = x + LayerNorm_after(out); normed = LayerNorm_before(hidden). The Triton kernel takes one launch.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from kernels import reference
from kernels.reference import Norm
from kernels.triton_support import triton_unsupported_reason

LARGEST: Final = 16384
"""Maximum size of a hidden state: a program holds a whole row in its registers."""


def unsupported_reason(x: Tensor) -> str | None:
    """Return why the fast kernel does not support hidden states like `x`. None if it does."""
    if x.shape[-1] > LARGEST:
        return f"hidden states of {x.shape[-1]} are wider than {LARGEST}"
    if torch.is_grad_enabled() and x.requires_grad:
        return "the kernel computes no gradients"
    return triton_unsupported_reason(x)


def sandwich_norm(x: Tensor, out: Tensor, after: Norm, before: Norm) -> tuple[Tensor, Tensor]:
    """Compute hidden [.., h] and normed [.., h] from x, out [.., h]. Both are new tensors."""
    if unsupported_reason(x) is not None:
        return reference.sandwich_norm(x, out, after, before)
    from kernels.sandwich_norm_triton import sandwich_norm as fast

    return fast(x, out, after, before)
