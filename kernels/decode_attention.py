"""Decode attention: the new slots of each row attend to the keys and values in the cache.

Their own keys and values are written to the cache in the same step. Both channels take one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels import reference
from kernels.reference import Channel
from kernels.triton_support import triton_unsupported_reason

LARGEST_HEAD = 256
"""Maximum head size, such that a block of keys fits the registers of a program."""


def unsupported_reason(channels: Sequence[Channel]) -> str | None:
    """Return why the fast kernel does not support these channels. None if it does."""
    q = channels[0].q
    if len(channels) > 2:
        return f"the kernel supports one or two channels, not {len(channels)}"
    if q.shape[-1] > LARGEST_HEAD:
        return f"heads of {q.shape[-1]} are wider than {LARGEST_HEAD}"
    return triton_unsupported_reason(q)


def decode_attention(
    channels: Sequence[Channel], spans: torch.Tensor, text: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `kernels.reference.decode_attention`, [B, Q, channels, heads, d], with the fast kernel if possible.

    `spans`, int32 [channels, Q, 2], is read on the device, so that a captured graph can be replayed for every slot.
    """
    if unsupported_reason(channels) is not None:
        return reference.decode_attention(channels, spans, text)
    from kernels.decode_attention_triton import decode_attention as fast

    return fast(channels, spans, text)
