"""Draws what a slot of the super-resolution network sees, asked of the attention itself by differentiating it.

python scripts/docs/draw_superres.py writes docs/drawings/superres_{en,zh}.svg.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from cogvideo.config import PRESETS, ModelConfig  # noqa: E402
from kernels.reference import LocalWindows, local_attention  # noqa: E402
from scripts.docs.drawing import (  # noqa: E402
    BLUE,
    GREEN,
    GREY,
    INK,
    PALE_BLUE,
    PALE_GREEN,
    SOFT,
    Drawing,
    Language,
    write,
)

LOOKS = ((13, 11), (0, 22))
"""(row, column) of the two slots shown: one inside, one at the border."""


def seen(config: ModelConfig, row: int, column: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """The fine cells [H', W'] and the coarse cells [H, W] that move the output of one fine slot."""
    fine, coarse = config.fine_grid, config.grid
    values = [torch.zeros(1, 1, h * w, 1, requires_grad=True) for h, w in (fine, coarse)]
    keys = [torch.zeros(1, 1, h * w, 1) for h, w in (fine, coarse)]
    windows = LocalWindows(fine, coarse, config.fine_window, config.coarse_window)
    output = local_attention(keys[0], keys[0], values[0], keys[1], values[1], windows)
    gradients = torch.autograd.grad(output[0, 0, row * fine[1] + column, 0], values)
    near_fine, near_coarse = ((g != 0).numpy().reshape(grid) for g, grid in zip(gradients, (fine, coarse)))
    return near_fine, near_coarse


def superres(language: Language) -> str:
    """The fine and the coarse grid of `mini`, with what two slots see of each."""
    config = PRESETS["mini"].model
    words: dict[Language, tuple[str, str, str, str]] = {
        "en": (
            "Super-resolution: every token of a frame in one pass",
            "fine grid, 24 × 24: a window 9 high and 5 wide",
            "coarse grid, 8 × 8: 5 × 5",
            "One softmax over both windows. Black: the slot that looks, and the coarse cell it lies in.",
        ),
        "zh": (
            "超分辨率：一帧的所有 token 一次完成",
            "细网格 24 × 24：高 9 宽 5 的窗口",
            "粗网格 8 × 8：5 × 5",
            "两个窗口共用一个 softmax。黑色：正在看的位置，以及它所在的粗格子。",
        ),
    }
    title, fine_name, coarse_name, note = words[language]
    drawing = Drawing(700, 408, title)
    drawing.text(20, 30, title, 15, bold=True)
    (rows, columns), (coarse_rows, coarse_columns) = config.fine_grid, config.grid
    cell, coarse_cell = 12.0, 12.0 * config.upscale
    drawing.text(30, 66, fine_name, 12.5)
    drawing.text(380, 66, coarse_name, 12.5)
    drawing.rect(30, 76, columns * cell, rows * cell, GREY)
    drawing.rect(380, 76, coarse_columns * coarse_cell, coarse_rows * coarse_cell, GREY)
    for (row, column), fill in zip(LOOKS, (PALE_BLUE, PALE_GREEN)):
        near_fine, near_coarse = seen(config, row, column)
        drawing.mask(30, 76, cell, near_fine, fill)
        drawing.mask(380, 76, coarse_cell, near_coarse, fill)
    drawing.lattice(30, 76, cell, rows, columns)
    drawing.lattice(380, 76, coarse_cell, coarse_rows, coarse_columns)
    for (row, column), edge in zip(LOOKS, (BLUE, GREEN)):
        drawing.rect(30 + column * cell, 76 + row * cell, cell, cell, INK)
        above_row, above_column = row // config.upscale, column // config.upscale
        x, y = 380 + above_column * coarse_cell, 76 + above_row * coarse_cell
        drawing.rect(x + 3, y + 3, coarse_cell - 6, coarse_cell - 6, "none", edge)
        drawing.rect(x + coarse_cell / 2 - 4, y + coarse_cell / 2 - 4, 8, 8, INK)
    drawing.text(20, 390, note, 11.5, fill=SOFT)
    return drawing.svg()


DRAWINGS = {"superres": superres}

if __name__ == "__main__":
    write(DRAWINGS)
