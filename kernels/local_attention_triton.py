"""Local attention in Triton, forward and backward. Imported only if `local_attention.unsupported_reason` is None.

Each key is read once for each tile of queries. Only the log-sum-exp of every query is stored for the backward pass.

A program computes a tile of TILE_Y x TILE_X cells of one (sample, head). It iterates over the rectangle of cells that
any of its windows touches, ROWS x COLS at a time. Pairs outside a window or grid have the score -inf. The same code
handles the fine and the coarse grid. They differ only in the fine cells that one key covers (`down`, `across`: 1 for
the fine grid). Scores are in base 2.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def _dot(a, b):
    """Compute a matrix product with fp32 sums. Triton's interpreter treats bfloat16 as integers, so it gets fp32."""
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _cells(first_y, first_x, height, width, SPAN: tl.constexpr, COUNT: tl.constexpr):
    """Return rows, columns and a grid mask of COUNT cells of a rectangle SPAN wide, from (first_y, first_x) on."""
    i = tl.arange(0, COUNT)
    y = first_y + i // SPAN
    x = first_x + i % SPAN
    return y, x, (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _load(base, y, x, on_grid, width, stride, d, D: tl.constexpr):
    """Load the vectors of cells, [cells, D]: 0 outside the grid and beyond the head size."""
    c = tl.arange(0, D)
    at = base + (y * width + x)[:, None] * stride + c[None, :]
    return tl.load(at, mask=on_grid[:, None] & (c < d)[None, :], other=0.0)


@triton.jit
def _store(base, values, y, x, on_grid, width, d, D: tl.constexpr):
    """Store the vectors of cells, the inverse of `_load`, in a tensor with contiguous cells."""
    c = tl.arange(0, D)
    at = base + (y * width + x)[:, None] * d + c[None, :]
    tl.store(at, values.to(base.dtype.element_ty), mask=on_grid[:, None] & (c < d)[None, :])


@triton.jit
def _scores(q, k, qy, qx, q_on, ky, kx, k_on, scale, down, across, HALF_Y: tl.constexpr, HALF_X: tl.constexpr):
    """Compute base-2 scores of a tile of queries and some keys, [queries, keys]: -inf for keys outside the window."""
    dy = (qy // down)[:, None] - ky[None, :]
    dx = (qx // across)[:, None] - kx[None, :]
    near = (dy <= HALF_Y) & (dy >= -HALF_Y) & (dx <= HALF_X) & (dx >= -HALF_X)
    s = _dot(q, tl.trans(k)) * scale
    return tl.where(near & q_on[:, None] & k_on[None, :], s, float("-inf"))


@triton.jit
def _attend(
    q, qy, qx, q_on, y0, x0, k_base, v_base, k_stride, v_stride, height, width, down, across, scale, d,
    best, total, sum_v,
    HALF_Y: tl.constexpr, HALF_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Add the keys of one grid to a tile's running softmax: (best score, sum of weights, weighted sum of values)."""
    last_y = tl.minimum((y0 + TILE_Y - 1) // down + HALF_Y, height - 1)
    last_x = tl.minimum((x0 + TILE_X - 1) // across + HALF_X, width - 1)
    for ky0 in range(tl.maximum(y0 // down - HALF_Y, 0), last_y + 1, ROWS):
        for kx0 in range(tl.maximum(x0 // across - HALF_X, 0), last_x + 1, COLS):
            ky, kx, k_on = _cells(ky0, kx0, height, width, COLS, ROWS * COLS)
            k = _load(k_base, ky, kx, k_on, width, k_stride, d, D)
            v = _load(v_base, ky, kx, k_on, width, v_stride, d, D)
            s = _scores(q, k, qy, qx, q_on, ky, kx, k_on, scale, down, across, HALF_Y, HALF_X)
            new = tl.maximum(best, tl.max(s, axis=1))
            shift = tl.where(new == float("-inf"), 0.0, new)  # no key of this query so far
            p = tl.exp2(s - shift[:, None])
            shrink = tl.exp2(best - shift)
            total = total * shrink + tl.sum(p, axis=1)
            sum_v = sum_v * shrink[:, None] + _dot(p.to(v.dtype), v)
            best = new
    return best, total, sum_v


@triton.jit
def _forward(
    Q, KF, VF, KC, VC, OUT, LSE,
    qb, qh, qn, kfb, kfh, kfn, vfb, vfh, vfn, kcb, kch, kcn, vcb, vch, vcn,
    heads, Hf, Wf, Hc, Wc, scale, d,
    FINE_Y: tl.constexpr, FINE_X: tl.constexpr, COARSE_Y: tl.constexpr, COARSE_X: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    tiles_x = tl.cdiv(Wf, TILE_X)
    y0 = tl.program_id(0) // tiles_x * TILE_Y
    x0 = tl.program_id(0) % tiles_x * TILE_X
    qy, qx, q_on = _cells(y0, x0, Hf, Wf, TILE_X, TILE_Y * TILE_X)
    q = _load(Q + b * qb + h * qh, qy, qx, q_on, Wf, qn, d, D)
    best = tl.full([TILE_Y * TILE_X], float("-inf"), tl.float32)
    total = tl.zeros([TILE_Y * TILE_X], tl.float32)
    sum_v = tl.zeros([TILE_Y * TILE_X, D], tl.float32)
    best, total, sum_v = _attend(
        q, qy, qx, q_on, y0, x0, KF + b * kfb + h * kfh, VF + b * vfb + h * vfh, kfn, vfn, Hf, Wf, 1, 1, scale, d,
        best, total, sum_v, FINE_Y, FINE_X, TILE_Y, TILE_X, ROWS, COLS, D,
    )  # fmt: skip
    best, total, sum_v = _attend(
        q, qy, qx, q_on, y0, x0, KC + b * kcb + h * kch, VC + b * vcb + h * vch, kcn, vcn, Hc, Wc, Hf // Hc, Wf // Wc,
        scale, d, best, total, sum_v, COARSE_Y, COARSE_X, TILE_Y, TILE_X, ROWS, COLS, D,
    )  # fmt: skip
    total = tl.where(q_on, total, 1.0)  # cells outside the grid have no keys
    sample = (b * heads + h) * Hf * Wf
    _store(OUT + sample * d, sum_v / total[:, None], qy, qx, q_on, Wf, d, D)
    tl.store(LSE + sample + qy * Wf + qx, best + tl.log2(total), mask=q_on)


@triton.jit
def _grad_q_from(
    q, go, lse, delta, qy, qx, q_on, y0, x0, k_base, v_base, k_stride, v_stride, height, width, down, across, scale, d,
    grad, HALF_Y: tl.constexpr, HALF_X: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Add the contribution of one grid's keys to the gradient of a tile of queries (without the score's scale)."""
    last_y = tl.minimum((y0 + TILE_Y - 1) // down + HALF_Y, height - 1)
    last_x = tl.minimum((x0 + TILE_X - 1) // across + HALF_X, width - 1)
    for ky0 in range(tl.maximum(y0 // down - HALF_Y, 0), last_y + 1, ROWS):
        for kx0 in range(tl.maximum(x0 // across - HALF_X, 0), last_x + 1, COLS):
            ky, kx, k_on = _cells(ky0, kx0, height, width, COLS, ROWS * COLS)
            k = _load(k_base, ky, kx, k_on, width, k_stride, d, D)
            v = _load(v_base, ky, kx, k_on, width, v_stride, d, D)
            s = _scores(q, k, qy, qx, q_on, ky, kx, k_on, scale, down, across, HALF_Y, HALF_X)
            p = tl.exp2(s - lse[:, None])
            ds = p * (_dot(go, tl.trans(v)) - delta[:, None])
            grad += _dot(ds.to(k.dtype), k)
    return grad


@triton.jit
def _backward_queries(
    Q, KF, VF, KC, VC, GO, LSE, DELTA, GQ,
    qb, qh, qn, kfb, kfh, kfn, vfb, vfh, vfn, kcb, kch, kcn, vcb, vch, vcn,
    heads, Hf, Wf, Hc, Wc, scale, d,
    FINE_Y: tl.constexpr, FINE_X: tl.constexpr, COARSE_Y: tl.constexpr, COARSE_X: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    tiles_x = tl.cdiv(Wf, TILE_X)
    y0 = tl.program_id(0) // tiles_x * TILE_Y
    x0 = tl.program_id(0) % tiles_x * TILE_X
    sample = (b * heads + h) * Hf * Wf
    qy, qx, q_on = _cells(y0, x0, Hf, Wf, TILE_X, TILE_Y * TILE_X)
    q = _load(Q + b * qb + h * qh, qy, qx, q_on, Wf, qn, d, D)
    go = _load(GO + sample * d, qy, qx, q_on, Wf, d, d, D)
    lse = tl.load(LSE + sample + qy * Wf + qx, mask=q_on, other=0.0)
    delta = tl.load(DELTA + sample + qy * Wf + qx, mask=q_on, other=0.0)
    grad = tl.zeros([TILE_Y * TILE_X, D], tl.float32)
    grad = _grad_q_from(
        q, go, lse, delta, qy, qx, q_on, y0, x0, KF + b * kfb + h * kfh, VF + b * vfb + h * vfh, kfn, vfn, Hf, Wf, 1, 1,
        scale, d, grad, FINE_Y, FINE_X, TILE_Y, TILE_X, ROWS, COLS, D,
    )  # fmt: skip
    grad = _grad_q_from(
        q, go, lse, delta, qy, qx, q_on, y0, x0, KC + b * kcb + h * kch, VC + b * vcb + h * vch, kcn, vcn, Hc, Wc,
        Hf // Hc, Wf // Wc, scale, d, grad, COARSE_Y, COARSE_X, TILE_Y, TILE_X, ROWS, COLS, D,
    )  # fmt: skip
    natural = scale / LOG2_E  # gradients are of natural scores, `scale` makes base-2 ones
    _store(GQ + sample * d, grad * natural, qy, qx, q_on, Wf, d, D)


@triton.jit
def _backward_keys(
    Q, K, V, GO, LSE, DELTA, GK, GV,
    qb, qh, qn, kb, kh, kn, vb, vh, vn,
    heads, Hf, Wf, height, width, scale, d,
    HALF_Y: tl.constexpr, HALF_X: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of keys of either grid: iterate over the fine cells that attend to it."""
    b = (tl.program_id(1) // heads).to(tl.int64)
    h = (tl.program_id(1) % heads).to(tl.int64)
    down, across = Hf // height, Wf // width
    tiles_x = tl.cdiv(width, TILE_X)
    y0 = tl.program_id(0) // tiles_x * TILE_Y
    x0 = tl.program_id(0) % tiles_x * TILE_X
    ky, kx, k_on = _cells(y0, x0, height, width, TILE_X, TILE_Y * TILE_X)
    k = _load(K + b * kb + h * kh, ky, kx, k_on, width, kn, d, D)
    v = _load(V + b * vb + h * vh, ky, kx, k_on, width, vn, d, D)
    queries = (b * heads + h) * Hf * Wf
    grad_k = tl.zeros([TILE_Y * TILE_X, D], tl.float32)
    grad_v = tl.zeros([TILE_Y * TILE_X, D], tl.float32)
    last_y = tl.minimum((y0 + TILE_Y + HALF_Y) * down, Hf)
    last_x = tl.minimum((x0 + TILE_X + HALF_X) * across, Wf)
    for qy0 in range(tl.maximum(y0 - HALF_Y, 0) * down, last_y, ROWS):
        for qx0 in range(tl.maximum(x0 - HALF_X, 0) * across, last_x, COLS):
            qy, qx, q_on = _cells(qy0, qx0, Hf, Wf, COLS, ROWS * COLS)
            q = _load(Q + b * qb + h * qh, qy, qx, q_on, Wf, qn, d, D)
            go = _load(GO + queries * d, qy, qx, q_on, Wf, d, d, D)
            lse = tl.load(LSE + queries + qy * Wf + qx, mask=q_on, other=0.0)
            delta = tl.load(DELTA + queries + qy * Wf + qx, mask=q_on, other=0.0)
            s = _scores(q, k, qy, qx, q_on, ky, kx, k_on, scale, down, across, HALF_Y, HALF_X)
            p = tl.exp2(s - lse[:, None])  # [queries, keys]
            grad_v += _dot(tl.trans(p.to(go.dtype)), go)
            ds = p * (_dot(go, tl.trans(v)) - delta[:, None])
            grad_k += _dot(tl.trans(ds.to(q.dtype)), q)
    keys = (b * heads + h) * height * width * d
    natural = scale / LOG2_E
    _store(GK + keys, grad_k * natural, ky, kx, k_on, width, d, D)
    _store(GV + keys, grad_v, ky, kx, k_on, width, d, D)


def tiling(head: int, element: int) -> dict[str, int]:
    """Return the tile of queries, the rectangle of keys and the padded head size.

    `head`: head size; `element`: bytes of a number. The backward pass fits the 64 KiB of shared memory of the oldest
    supported GPU.
    """
    D = max(16, triton.next_power_of_2(head))
    rows = 4 if D * element <= 128 else 2
    return dict(TILE_Y=2 * rows, TILE_X=8, ROWS=rows, COLS=16, D=D)


def _programs(q: torch.Tensor, grid: tuple[int, int], sizes: dict[str, int]) -> tuple[int, int]:
    tiles = triton.cdiv(grid[0], sizes["TILE_Y"]) * triton.cdiv(grid[1], sizes["TILE_X"])
    return (tiles, q.shape[0] * q.shape[1])


class LocalAttention(torch.autograd.Function):
    """Differentiable local attention.

    `apply(q, k_fine, v_fine, k_coarse, v_coarse, windows)`, with `windows` a `reference.LocalWindows`.
    """

    @staticmethod
    def forward(ctx: Any, q, k_fine, v_fine, k_coarse, v_coarse, windows):
        """Attend: five tensors [B, heads, cells, d], contiguous in the last dimension -> [B, heads, fine cells, d]."""
        tensors = [q, k_fine, v_fine, k_coarse, v_coarse]
        fine_grid, coarse_grid, fine_window, coarse_window = windows
        d = q.shape[-1]
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
        ctx.sizes = dict(
            FINE_Y=fine_window[0] // 2, FINE_X=fine_window[1] // 2,
            COARSE_Y=coarse_window[0] // 2, COARSE_X=coarse_window[1] // 2,
            **tiling(d, q.element_size()),
        )  # fmt: skip
        ctx.numbers = [q.shape[1], *fine_grid, *coarse_grid, d**-0.5 * LOG2_E.value, d]
        strides = [stride for tensor in tensors for stride in tensor.stride()[:3]]
        _forward[_programs(q, fine_grid, ctx.sizes)](*tensors, out, lse, *strides, *ctx.numbers, **ctx.sizes)
        ctx.save_for_backward(*tensors, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Compute the gradients of the five tensors. The scores are recomputed."""
        *tensors, out, lse = ctx.saved_tensors
        q, k_fine, v_fine, k_coarse, v_coarse = tensors
        heads, Hf, Wf, Hc, Wc, scale, d = ctx.numbers
        grad_out = grad_out.contiguous()
        delta = (grad_out.float() * out.float()).sum(-1)  # [B, heads, fine cells]
        grads = [torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in tensors]
        strides = [stride for tensor in tensors for stride in tensor.stride()[:3]]
        _backward_queries[_programs(q, (Hf, Wf), ctx.sizes)](
            *tensors, grad_out, lse, delta, grads[0], *strides, *ctx.numbers, **ctx.sizes
        )
        tile = {name: ctx.sizes[name] for name in ("TILE_Y", "TILE_X", "ROWS", "COLS", "D")}
        for key, value, grad_k, grad_v, grid, channel in (
            (k_fine, v_fine, grads[1], grads[2], (Hf, Wf), "FINE"),
            (k_coarse, v_coarse, grads[3], grads[4], (Hc, Wc), "COARSE"),
        ):
            _backward_keys[_programs(q, grid, tile)](
                q, key, value, grad_out, lse, delta, grad_k, grad_v,
                *q.stride()[:3], *key.stride()[:3], *value.stride()[:3], heads, Hf, Wf, *grid, scale, d,
                HALF_Y=ctx.sizes[f"{channel}_Y"], HALF_X=ctx.sizes[f"{channel}_X"], **tile,
            )  # fmt: skip
        return (*grads, None)
