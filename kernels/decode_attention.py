"""The door to the attention of decoding: what the new slots of each row see of the keys and values kept so far.

Their own keys and values are written into their places in the same step, and both channels go in one launch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels import reference
from kernels.reference import Channel
from kernels.triton_support import triton_unsupported_reason

LARGEST_HEAD = 256
"""Numbers of one head's vector; a block of keys as wide fits the registers of a program."""


def unsupported_reason(channels: Sequence[Channel]) -> str | None:
    """Why the fast kernel cannot take these channels, in words; None where it can."""
    q = channels[0].q
    if len(channels) > 2:
        return f"the kernel serves one or two channels, not {len(channels)}"
    if q.shape[-1] > LARGEST_HEAD:
        return f"heads of {q.shape[-1]} are wider than {LARGEST_HEAD}"
    return triton_unsupported_reason(q)


def decode_attention(
    channels: Sequence[Channel], spans: torch.Tensor, text: torch.Tensor | None = None
) -> torch.Tensor:
    """As `kernels.reference.decode_attention`: [B, Q, channels, heads, d], with k_v kept in their arenas.

    `spans`, int32 [channels, Q, 2], is read on the device, so that a captured graph can be replayed for every slot.
    """
    if unsupported_reason(channels) is not None:
        return reference.decode_attention(channels, spans, text)
    from kernels.decode_attention_triton import decode_attention as fast

    return fast(channels, spans, text)
