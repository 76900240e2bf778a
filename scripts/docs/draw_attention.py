"""Draws who sees whom in stages 1 and 2, and the windows of stage 2, from `cogvideo.token_layout` itself.

python scripts/docs/draw_attention.py writes docs/drawings/{sequence,stage1,stage2,windows}_{en,zh}.svg.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from cogvideo.config import PRESETS  # noqa: E402
from cogvideo.token_layout import Stage, TokenLayout  # noqa: E402
from scripts.docs.drawing import (  # noqa: E402
    BLUE,
    GREEN,
    GREY,
    INK,
    LINE,
    ORANGE,
    PALE_BLUE,
    PALE_GREEN,
    PALE_ORANGE,
    SOFT,
    Drawing,
    Language,
    write,
)

SMALL = TokenLayout(replace(PRESETS["mini"].model, grid=(4, 4), window=2))
"""The geometry of a model whose frames have 16 tokens: small enough for every slot to be a square of the drawing."""

TEXT = 4
"""Words before the frames in a drawing of a mask."""

CELL = 3.2

Mask = npt.NDArray[np.bool_]


def spatial(layout: TokenLayout, stage: Stage, frames: tuple[int, ...]) -> Mask:
    """The backbone's own channel, [slots, slots] with the text first: words see words, a frame words and itself."""
    size = layout.tokens_per_frame
    seen = np.zeros((TEXT + len(frames) * size,) * 2, dtype=np.bool_)
    seen[:, :TEXT] = True
    for i, frame in enumerate(frames):
        own = slice(TEXT + i * size, TEXT + (i + 1) * size)
        seen[own, own] = layout.spatial_mask(stage, frame)
    return seen


def temporal(layout: TokenLayout, stage: Stage, frames: tuple[int, ...], layer: int) -> Mask:
    """The channel across frames: words have no output there, a frame sees words and what its stage lets it see."""
    size = layout.tokens_per_frame
    causal = np.tril(np.ones((size, size), dtype=np.bool_))
    near = layout.region_mask(layer) if stage == 2 else np.ones_like(causal)
    sights = {"NONE": near & False, "CAUSAL": near & causal, "ALL": near}
    rows = [
        np.concatenate([sights[layout.temporal_visibility(stage, frame, other).name] for other in frames], axis=1)
        for frame in frames
    ]
    seen = np.zeros((TEXT + len(frames) * size,) * 2, dtype=np.bool_)
    seen[TEXT:, :TEXT] = True
    seen[TEXT:, TEXT:] = np.concatenate(rows)
    return seen


def panel(drawing: Drawing, x: float, y: float, seen: Mask, frames: tuple[int, ...], title: str, fill: str) -> None:
    """One mask with the bounds and numbers of its frames; rows look, columns are looked at."""
    side = len(seen) * CELL
    drawing.text(x, y - 26, title, 13, bold=True)
    drawing.rect(x, y, side, side, GREY)
    words = seen.copy()
    words[:, TEXT:] = False
    drawing.mask(x, y, CELL, words, ORANGE)
    others = seen.copy()
    others[:, :TEXT] = False
    drawing.mask(x, y, CELL, others, fill)
    size = (len(seen) - TEXT) // len(frames) * CELL
    start = TEXT * CELL
    for i, frame in enumerate(frames):
        at = start + i * size
        drawing.text(x + at + size / 2, y - 7, str(frame), 11, "middle", SOFT)
        drawing.text(x - 7, y + at + size / 2 + 4, str(frame), 11, "end", SOFT)
        drawing.line([(x + at, y), (x + at, y + side)], LINE, 0.8)
        drawing.line([(x, y + at), (x + side, y + at)], LINE, 0.8)
    drawing.rect(x, y, side, side, "none", SOFT)


HOW: dict[Language, tuple[str, str]] = {
    "en": (
        "Each row is a slot that looks, each column one that it may see. Orange: the words. Numbers: frames.",
        "16 tokens a frame here, 400 in the published model.",
    ),
    "zh": (
        "每一行是一个正在看的位置，每一列是它可以看到的位置。橙色：文字。数字：帧号。",
        "这里每帧 16 个 token，公开模型为 400 个。",
    ),
}


def stage1(language: Language) -> str:
    """Both channels of stage 1."""
    frames = tuple(range(SMALL.frames))
    titles: dict[Language, tuple[str, str, str]] = {
        "en": ("Stage 1: who sees whom", "Within the frame (the backbone)", "Across frames (attention_plus)"),
        "zh": ("第一阶段：谁能看到谁", "帧内（主干网络）", "跨帧（attention_plus）"),
    }
    title, within, across = titles[language]
    drawing = Drawing(700, 416, title)
    drawing.text(20, 30, title, 15, bold=True)
    panel(drawing, 50, 92, spatial(SMALL, 1, frames), frames, within, BLUE)
    panel(drawing, 390, 92, temporal(SMALL, 1, frames, 0), frames, across, GREEN)
    note(drawing, HOW[language])
    return drawing.svg()


def stage2(language: Language) -> str:
    """Both channels of stage 2, frames in the order in which they are decoded; the windows of even and odd layers."""
    frames = SMALL.stage2_order
    titles: dict[Language, tuple[str, str, str, str]] = {
        "en": (
            "Stage 2: frames 0, 2, 4 are given, 1 and 3 are drawn",
            "Within the frame",
            "Across frames, even layers",
            "Across frames, odd layers",
        ),
        "zh": ("第二阶段：已有第 0、2、4 帧，生成第 1、3 帧", "帧内", "跨帧，偶数层", "跨帧，奇数层"),
    }
    title, within, even, odd = titles[language]
    drawing = Drawing(1030, 416, title)
    drawing.text(20, 30, title, 15, bold=True)
    panel(drawing, 50, 92, spatial(SMALL, 2, frames), frames, within, BLUE)
    panel(drawing, 380, 92, temporal(SMALL, 2, frames, 0), frames, even, GREEN)
    panel(drawing, 710, 92, temporal(SMALL, 2, frames, 1), frames, odd, GREEN)
    note(drawing, HOW[language])
    return drawing.svg()


def note(drawing: Drawing, lines: tuple[str, ...]) -> None:
    """Sentences below a drawing."""
    for i, words in enumerate(lines):
        drawing.text(20, drawing.height - 32 + 17 * i, words, 11.5, fill=SOFT)


def windows(language: Language) -> str:
    """The regions of the published model's stage 2 on its 20 x 20 grid, and what one cell sees of another frame."""
    layout = TokenLayout(PRESETS["cogvideo"].model)
    height, width = layout.config.grid
    row, column = 6, 12
    cell, look = 12.0, row * width + column
    titles: dict[Language, tuple[str, str, str, str]] = {
        "en": (
            "Stage 2: what a cell sees of another frame",
            "even layers: windows of 10 × 10",
            "odd layers: shifted by 5",
            "The dark cell sees the coloured ones, in every frame it may look at.",
        ),
        "zh": (
            "第二阶段：一个格子能看到其他帧的哪些格子",
            "偶数层：10 × 10 的窗口",
            "奇数层：窗口移动 5 格",
            "深色格子在它能看的每一帧里都能看到彩色的格子。",
        ),
    }
    title, *names, words = titles[language]
    drawing = Drawing(580, 376, title)
    drawing.text(20, 30, title, 15, bold=True)
    for layer, name in enumerate(names):
        x, y = 25 + 285.0 * layer, 74.0
        regions = layout.regions(layout.shift(layer)).reshape(height, width)
        drawing.text(x, y - 10, name, 12.5)
        drawing.rect(x, y, width * cell, height * cell, GREY)
        drawing.mask(x, y, cell, layout.region_mask(layer)[look].reshape(height, width), PALE_GREEN)
        drawing.lattice(x, y, cell, height, width)
        for axis in (0, 1):
            for at in map(int, np.flatnonzero((np.diff(regions, axis=axis) != 0).any(1 - axis)) + 1):
                ends = [(x, y + at * cell), (x + width * cell, y + at * cell)]
                if axis == 1:
                    ends = [(x + at * cell, y), (x + at * cell, y + height * cell)]
                drawing.line(ends, GREEN, 2)
        drawing.rect(x + column * cell, y + row * cell, cell, cell, INK)
        drawing.rect(x, y, width * cell, height * cell, "none", SOFT)
    drawing.text(25, 342, words, 12, fill=SOFT)
    return drawing.svg()


def sequence(language: Language) -> str:
    """What the network reads: words, then frames, whose slot k holds token k - 1 and predicts token k."""
    layout = TokenLayout(PRESETS["cogvideo"].model)
    size = layout.tokens_per_frame
    names: dict[Language, tuple[str, str, str, str, str, str]] = {
        "en": ("The sequence that stages 1 and 2 read", "words", "frame {}", "tokens", "slot holds", "and predicts"),
        "zh": ("第一、二阶段读入的序列", "文字", "第 {} 帧", "个 token", "位置里放", "预测"),
    }
    title, words, frame_name, tokens, holds, predicts = names[language]
    drawing = Drawing(760, 268, title)
    drawing.text(20, 30, title, 15, bold=True)
    drawing.rect(20, 54, 150, 40, PALE_ORANGE, ORANGE, 4)
    drawing.text(95, 71, words, 12, "middle", bold=True)
    drawing.text(95, 87, "4.0秒 <n> 一只熊猫…", 11, "middle")
    drawing.text(20, 110, "0 …", 10.5, fill=SOFT)
    for frame in range(layout.frames):
        x = 178 + 113.0 * frame
        table = layout.image_start if frame == 0 else layout.image_start + size
        first, last = (int(layout.frame_rows(frame)[i]) + (table if frame else 0) for i in (0, -1))
        drawing.rect(x, 54, 107, 40, PALE_BLUE, BLUE, 4)
        drawing.text(x + 53.5, 71, frame_name.format(frame), 12, "middle", bold=True)
        drawing.text(x + 53.5, 87, f"{size} {tokens}", 11, "middle")
        drawing.text(x, 110, f"{first} … {last}", 10.5, fill=SOFT)
    drawing.line([(178, 122), (118, 146)], LINE, 1)
    drawing.line([(285, 122), (700, 146)], LINE, 1)
    inputs = ["BOI", "t0", "t1", "t2", "…", f"t{size - 2}"]
    outputs = ["t0", "t1", "t2", "t3", "…", f"t{size - 1}"]
    drawing.text(108, 172, holds, 12, "end", SOFT)
    drawing.text(108, 232, predicts, 12, "end", SOFT)
    for i, (inside, answer) in enumerate(zip(inputs, outputs)):
        x = 118 + 97.0 * i
        drawing.rect(x, 152, 92, 30, PALE_BLUE, BLUE, 4)
        drawing.text(x + 46, 172, inside, 12, "middle")
        if inside != "…":
            drawing.arrow(x + 46, 184, x + 46, 208)
        drawing.rect(x, 212, 92, 30, PALE_GREEN, GREEN, 4)
        drawing.text(x + 46, 232, answer, 12, "middle")
    return drawing.svg()


DRAWINGS = {"sequence": sequence, "stage1": stage1, "stage2": stage2, "windows": windows}

if __name__ == "__main__":
    write(DRAWINGS)
