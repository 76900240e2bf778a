"""Decode attention in Triton: one launch writes the new slots and attends in both channels.

Imported only if `unsupported_reason` is None. A program computes one slot of one head of one row in one channel. It
starts from the new slot, which it also writes to the buffer, and reads the earlier keys and values once. Their
bandwidth is the only significant cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels.reference import Channel

BLOCK = 64
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _attend(
    Q, KV, ARENA, OUT, SPANS, TEXT, span, row, head, slot,
    qb, qh, qn, kv2, kvb, kvh, kvn, a2, ab, ah, an, ob, oh, on, text_row, words, scale, d,
    TEXTED: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    start = tl.load(SPANS + 2 * span)
    own = tl.load(SPANS + 2 * span + 1) - 1  # index of the slot's own key
    c = tl.arange(0, D)
    within = c < d
    q = tl.load(Q + row * qb + head * qh + slot * qn + c, mask=within, other=0.0).to(tl.float32) * (scale * LOG2_E)
    new = KV + row * kvb + head * kvh + slot * kvn + c
    k_own = tl.load(new, mask=within, other=0.0)
    v_own = tl.load(new + kv2, mask=within, other=0.0)
    cache = ARENA + row * ab + head * ah
    tl.store(cache + own * an + c, k_own, mask=within)
    tl.store(cache + a2 + own * an + c, v_own, mask=within)

    best = tl.sum(q * k_own.to(tl.float32), axis=0)
    total = best * 0.0 + 1.0
    sum_v = v_own.to(tl.float32)
    for first in range(start, own, BLOCK):
        key = first + tl.arange(0, BLOCK)
        valid = key < own
        at = cache + key[:, None] * an + c[None, :]
        k = tl.load(at, mask=valid[:, None] & within[None, :], other=0.0).to(tl.float32)
        s = tl.sum(k * q[None, :], axis=1)
        if TEXTED:
            word = key - start
            bias = tl.load(TEXT + row * text_row + word, mask=valid & (word < words), other=0.0).to(tl.float32)
            s += bias * LOG2_E
        s = tl.where(valid, s, float("-inf"))
        higher = tl.maximum(best, tl.max(s, axis=0))
        shrink = tl.exp2(best - higher)
        p = tl.exp2(s - higher)
        v = tl.load(at + a2, mask=valid[:, None] & within[None, :], other=0.0).to(tl.float32)
        total = total * shrink + tl.sum(p, axis=0)
        sum_v = sum_v * shrink + tl.sum(p[:, None] * v, axis=0)
        best = higher
    tl.store(OUT + row * ob + head * oh + slot * on + c, (sum_v / total).to(OUT.dtype.element_ty), mask=within)


@triton.jit
def _decode(
    Q0, KV0, ARENA0, OUT0, Q1, KV1, ARENA1, OUT1, SPANS, TEXT,
    qb0, qh0, qn0, kv20, kvb0, kvh0, kvn0, a20, ab0, ah0, an0, ob0, oh0, on0,
    qb1, qh1, qn1, kv21, kvb1, kvh1, kvn1, a21, ab1, ah1, an1, ob1, oh1, on1,
    heads, slots, text_row, words, scale, d,
    TEXTED: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(2)
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    if tl.program_id(1) == 0:
        _attend(
            Q0, KV0, ARENA0, OUT0, SPANS, TEXT, slot, row, head, slot,
            qb0, qh0, qn0, kv20, kvb0, kvh0, kvn0, a20, ab0, ah0, an0, ob0, oh0, on0,
            text_row, words, scale, d, TEXTED, BLOCK, D,
        )  # fmt: skip
    else:
        _attend(
            Q1, KV1, ARENA1, OUT1, SPANS, TEXT, slots + slot, row, head, slot,
            qb1, qh1, qn1, kv21, kvb1, kvh1, kvn1, a21, ab1, ah1, an1, ob1, oh1, on1,
            text_row, words, scale, d, TEXTED, BLOCK, D,
        )  # fmt: skip


def decode_attention(channels: Sequence[Channel], spans: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
    """Compute `kernels.decode_attention` of one or two channels, [B, Q, channels, heads, d], in one launch.

    Raises ValueError if the last dimension of a buffer is not contiguous.
    """
    q = channels[0].q
    rows, heads, slots, d = q.shape
    output = torch.empty(rows, slots, len(channels), heads, d, dtype=q.dtype, device=q.device)
    outs = output.permute(2, 0, 3, 1, 4).unbind(0)
    pointers: list[torch.Tensor] = []
    strides: list[int] = []
    for channel, out in zip((channels[0], channels[-1]), (outs[0], outs[-1])):
        q, k_v = (t if t.stride(-1) == 1 else t.contiguous() for t in (channel.q, channel.k_v))
        cache = channel.arena
        if cache.stride(-1) != 1:
            raise ValueError("the last dimension of a buffer must be contiguous: it is written in place")
        pointers += [q, k_v, cache, out]
        strides += [*q.stride()[:3], *k_v.stride()[:4], *cache.stride()[:4], *out.stride()[:3]]
    words = text if text is not None else spans  # any pointer: it is not read without text
    _decode[(rows * heads, len(channels), slots)](
        *pointers, spans, words, *strides, heads, slots, words.stride(0), words.shape[-1], d**-0.5, d,
        TEXTED=text is not None, BLOCK=BLOCK, D=max(16, triton.next_power_of_2(d)),
    )  # fmt: skip
    return output
