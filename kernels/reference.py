"""References of all kernels in plain PyTorch: a simple one for the tests (`*_dense`), and an efficient one.

Local attention of super-resolution: every cell of a fine grid attends to two windows in one softmax. One is around
itself on the fine grid, the other around its coarse cell. Cells outside a grid are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.dense_attention import dense_attention

Size = tuple[int, int]
"""(height, width) in cells."""

OUTSIDE = -10000.0
"""Score of a key outside the grid or window: after softmax its weight is 0."""


class LocalWindows(NamedTuple):
    """The two grids and the window on each, as (height, width) in cells."""

    fine_grid: Size
    coarse_grid: Size
    fine_window: Size = (9, 5)
    coarse_window: Size = (5, 5)


def check_shapes(
    q: torch.Tensor,
    k_fine: torch.Tensor,
    v_fine: torch.Tensor,
    k_coarse: torch.Tensor,
    v_coarse: torch.Tensor,
    windows: LocalWindows,
) -> None:
    """Check that tensors, grids and windows fit each other. All forms call this first. Raises ValueError."""
    fine_grid, coarse_grid, fine_window, coarse_window = windows
    B, heads, _, d = q.shape
    fine = (B, heads, fine_grid[0] * fine_grid[1], d)
    coarse = (B, heads, coarse_grid[0] * coarse_grid[1], d)
    for name, tensor, shape in (
        ("q", q, fine),
        ("k_fine", k_fine, fine),
        ("v_fine", v_fine, fine),
        ("k_coarse", k_coarse, coarse),
        ("v_coarse", v_coarse, coarse),
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; grids and q require {shape}")
    if fine_grid[0] % coarse_grid[0] or fine_grid[1] % coarse_grid[1]:
        raise ValueError(f"the fine grid {fine_grid} is not a multiple of the coarse grid {coarse_grid}")
    if any(side % 2 == 0 for side in (*fine_window, *coarse_window)):
        raise ValueError(f"windows {fine_window} and {coarse_window} require odd sides")


def local_attention(
    q: torch.Tensor,
    k_fine: torch.Tensor,
    v_fine: torch.Tensor,
    k_coarse: torch.Tensor,
    v_coarse: torch.Tensor,
    windows: LocalWindows,
) -> torch.Tensor:
    """Compute local attention, [B, heads, Hf*Wf, d]. Differentiable.

    q, k_fine, v_fine [B, heads, Hf*Wf, d], k_coarse, v_coarse [B, heads, Hc*Wc, d].

    Fine cell (y, x) attends to the `fine_window` (height, width) around (y, x) on the fine grid. It also attends to the
    `coarse_window` around (y * Hc // Hf, x * Wc // Wf) on the coarse grid. Both share one softmax, with scores scaled
    by d ** -0.5.

    It processes one band of queries at a time, whose height is that of a coarse row. The band's keys are the rows that
    any of its windows touches. This takes a few dense products of a band instead of a gather for every window.
    """
    check_shapes(q, k_fine, v_fine, k_coarse, v_coarse, windows)
    (Hf, Wf), (Hc, Wc), fine_window, coarse_window = windows
    step = Hf // Hc
    x = torch.arange(Wf, device=q.device)
    near_fine_x = _within(x, (0, Wf), fine_window[1])  # [Wf, Wf]
    near_coarse_x = _within(x * Wc // Wf, (0, Wc), coarse_window[1])  # [Wf, Wc]
    bands = []
    for cy in range(Hc):
        y = torch.arange(cy * step, (cy + 1) * step, device=q.device)
        fine = (max(0, cy * step - fine_window[0] // 2), min(Hf, (cy + 1) * step + fine_window[0] // 2))
        coarse = (max(0, cy - coarse_window[0] // 2), min(Hc, cy + coarse_window[0] // 2 + 1))
        near_fine = _pairs(_within(y, fine, fine_window[0]), near_fine_x)
        near_coarse = _pairs(_within(y // step, coarse, coarse_window[0]), near_coarse_x)
        f, c = slice(fine[0] * Wf, fine[1] * Wf), slice(coarse[0] * Wc, coarse[1] * Wc)
        keys = torch.cat([k_fine[:, :, f], k_coarse[:, :, c]], dim=2)  # [B, heads, K, d]
        values = torch.cat([v_fine[:, :, f], v_coarse[:, :, c]], dim=2)
        near = torch.cat([near_fine, near_coarse], dim=1)  # [step*Wf, K]
        mask = torch.zeros(near.shape, device=q.device, dtype=q.dtype).masked_fill_(~near, OUTSIDE)
        band = q[:, :, cy * step * Wf : (cy + 1) * step * Wf]  # [B, heads, step*Wf, d]
        bands.append(dense_attention(band, keys, values, mask))
    return torch.cat(bands, dim=2)


def _within(cells: torch.Tensor, keys: Size, window: int) -> torch.Tensor:
    """Return which of keys[0]..keys[1]-1 lie in the window around each cell, along one axis: bool [cells, keys]."""
    return (cells[:, None] - torch.arange(*keys, device=cells.device)).abs() <= window // 2


def _pairs(near_y: torch.Tensor, near_x: torch.Tensor) -> torch.Tensor:
    """Combine the masks of both axes: [y, key y] and [x, key x] -> bool [y*x, key y * key x]."""
    return (near_y[:, None, :, None] & near_x[None, :, None, :]).flatten(2).flatten(0, 1)


def local_attention_dense(
    q: torch.Tensor,
    k_fine: torch.Tensor,
    v_fine: torch.Tensor,
    k_coarse: torch.Tensor,
    v_coarse: torch.Tensor,
    windows: LocalWindows,
) -> torch.Tensor:
    """Compute `local_attention` with scores of all pairs of cells and a mask set cell by cell: the tests' reference."""
    check_shapes(q, k_fine, v_fine, k_coarse, v_coarse, windows)
    (Hf, Wf), (Hc, Wc), fine_window, coarse_window = windows
    keys = torch.cat([k_fine, k_coarse], dim=2).float()
    values = torch.cat([v_fine, v_coarse], dim=2).float()
    scores = q.float() @ keys.transpose(2, 3) / math.sqrt(q.shape[-1])  # [B, heads, Hf*Wf, Hf*Wf + Hc*Wc]
    mask = torch.full(scores.shape[2:], OUTSIDE)
    for y in range(Hf):
        for x in range(Wf):
            for ky in range(Hf):
                for kx in range(Wf):
                    if abs(ky - y) <= fine_window[0] // 2 and abs(kx - x) <= fine_window[1] // 2:
                        mask[y * Wf + x, ky * Wf + kx] = 0
            for ky in range(Hc):
                for kx in range(Wc):
                    near_y = abs(ky - y * Hc // Hf) <= coarse_window[0] // 2
                    near_x = abs(kx - x * Wc // Wf) <= coarse_window[1] // 2
                    if near_y and near_x:
                        mask[y * Wf + x, Hf * Wf + ky * Wc + kx] = 0
    weights = torch.softmax(scores + mask.to(scores.device), dim=-1)
    return (weights @ values).to(q.dtype)


class Channel(NamedTuple):
    """One attention channel of a decoding step: Q slots of B rows, and a buffer of `capacity` keys and values."""

    q: torch.Tensor  # [B, heads, Q, d]
    k_v: torch.Tensor  # [2, B, heads, Q, d]: keys and values of the new slots
    arena: torch.Tensor  # [2, B, heads, capacity, d]: keys and values of earlier slots


def decode_attention(
    channels: Sequence[Channel], spans: torch.Tensor, text: torch.Tensor | None = None
) -> torch.Tensor:
    """Write each channel's k_v to its buffer, then attend; return [B, Q, channels, heads, d]. The buffers change.

    spans: int [channels, Q, 2], start and end (exclusive) of each slot's keys. The last key is the slot's own. No slot
        may attend to another slot of the same step.
    text: [B, T], added to the scores of the first T keys of every span: 0 or a bias for text, -inf for padding.
    """
    outputs = [_decode_one(channel, slots, text) for channel, slots in zip(channels, spans.tolist())]
    return torch.stack([output.transpose(1, 2) for output in outputs], dim=2)


def _decode_one(channel: Channel, spans: list[list[int]], text: torch.Tensor | None) -> torch.Tensor:
    outputs = []
    for slot, (start, end) in enumerate(spans):
        channel.arena[:, :, :, end - 1] = channel.k_v[:, :, :, slot]
        k, v = channel.arena[:, :, :, start:end]
        mask = None
        if text is not None:
            mask = F.pad(text, (0, end - start - text.shape[1]))[:, None, None].to(k.dtype)  # [B, 1, 1, keys]
        outputs.append(F.scaled_dot_product_attention(channel.q[:, :, slot, None], k, v, attn_mask=mask))
    return torch.cat(outputs, dim=2)


def decode_attention_dense(
    channels: Sequence[Channel], spans: torch.Tensor, text: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute `decode_attention` in fp32 by row, head and slot, without changing the buffers: the tests' reference."""
    outputs = []
    for (q, k_v, cache), slots in zip(channels, spans.tolist()):
        out = torch.zeros_like(q)
        for slot, (start, end) in enumerate(slots):
            for b in range(q.shape[0]):
                for h in range(q.shape[1]):
                    earlier = cache[:, b, h, start : end - 1]
                    k, v = torch.cat([earlier, k_v[:, b, h, slot, None]], dim=1).float()  # [keys, d]
                    scores = k @ q[b, h, slot].float() / math.sqrt(q.shape[-1])
                    if text is not None:
                        scores[: text.shape[1]] += text[b].float()
                    out[b, h, slot] = torch.softmax(scores, 0) @ v
        outputs.append(out.transpose(1, 2))
    return torch.stack(outputs, dim=2)


EPSILON: Final = 1e-5

Norm = tuple[Tensor, Tensor]
"""Weight and bias of a LayerNorm, [h] each."""


def sandwich_norm(x: Tensor, out: Tensor, after: Norm, before: Norm) -> tuple[Tensor, Tensor]:
    """Return x + LayerNorm_after(out), and LayerNorm_before of that sum, as new tensors. x, out [.., h]."""
    hidden = F.layer_norm(out, out.shape[-1:], *after, EPSILON).add_(x)
    return hidden, F.layer_norm(hidden, hidden.shape[-1:], *before, EPSILON)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [.., K] by (weight int8 [N, K] * scale [N]) and add bias [N]; return [.., N] in the type of x."""
    return F.linear(x, unpack_int8(weight, scale, x.dtype), None if bias is None else bias.to(x.dtype))


def unpack_int8(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Multiply weight int8 [N, K] by scale [N]; return [N, K] in `dtype`, rounded once."""
    return (weight.float() * scale[:, None]).to(dtype)
