"""Draw the stages from a prompt to a video, with the frames and tokens that the geometry gives.

python scripts/docs/draw_overview.py writes docs/drawings/overview_{en,zh}.svg, the picture at the top of each README.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from cogvideo.config import FRAME_COUNTS, PRESETS  # noqa: E402
from cogvideo.inference.sampling import FINEST_FRAME_COUNT, noise_frame_indices  # noqa: E402
from cogvideo.token_layout import TokenLayout  # noqa: E402
from scripts.docs.drawing import (  # noqa: E402
    BLUE,
    GREEN,
    GREY,
    LINE,
    ORANGE,
    PALE_GREEN,
    PALE_ORANGE,
    SOFT,
    Drawing,
    Language,
    write,
)

LEFT, WIDE = 236.0, 560.0
PROMPT = "一只熊猫在草地上向右跑"

WORDS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "From a prompt to a video",
        "words": "the prompt as text tokens, with the duration before them",
        "keyframes": "stage 1: five keyframes",
        "tokens": "token by token: {} tokens each",
        "between": "stage 2: {} frames",
        "again": "a frame between every two",
        "enlarge": "super-resolution",
        "pass": "{} tokens a frame in one pass",
        "film": "a video: mp4 or gif",
        "sizes": "the published model: {} × {}, upscaled to {} × {} pixels",
    },
    "zh": {
        "title": "从提示词到视频",
        "words": "提示词变成文本 token，前面加上视频的时长",
        "keyframes": "第一阶段：五个关键帧",
        "tokens": "逐个 token 生成，每帧 {} 个",
        "between": "第二阶段：{} 帧",
        "again": "每两帧之间插入一帧",
        "enlarge": "超分辨率",
        "pass": "每帧 {} 个 token，一次完成",
        "film": "视频：mp4 或 gif",
        "sizes": "公开模型：{} × {}，放大到 {} × {} 像素",
    },
}


def overview(language: Language) -> str:
    """Draw the stages from a prompt to 5, 9, 17 and 33 frames and a video; returns the text of an SVG."""
    preset = PRESETS["cogvideo"]
    layout = TokenLayout(preset.model)
    words = WORDS[language]
    drawing = Drawing(820, 452, words["title"])
    drawing.rect(20, 16, 216, 30, PALE_ORANGE, ORANGE, 15)
    drawing.text(128, 36, PROMPT, 13, "middle", bold=True)
    drawing.text(250, 36, words["words"], 11.5, fill=SOFT)
    drawing.arrow(128, 48, 128, 70)
    for level, frames in enumerate(FRAME_COUNTS):
        y = 98.0 + 64 * level
        name = words["between"].format(frames) if level else words["keyframes"]
        below = words["again"] if level else words["tokens"].format(layout.tokens_per_frame)
        _row(drawing, y, frames, level, name, below)
    y = 98.0 + 64 * len(FRAME_COUNTS)
    drawing.text(20, y + 2, words["enlarge"], 13, bold=True)
    drawing.text(20, y + 19, words["pass"].format(layout.fine_tokens), 11.5, fill=SOFT)
    side = 68.0
    for i, at in enumerate((0.0, 0.5, 1.0)):
        _frame(drawing, LEFT + (WIDE - side) * at, y - 24, side, layout.config.upscale * 8, at, True)
        if i:
            drawing.text(LEFT + (WIDE - side) * (at - 0.25) + side / 2, y + 14, "…", 18, "middle", SOFT)
    drawing.arrow(128, y + 30, 128, y + 50)
    drawing.text(128, y + 68, words["film"], 13, "middle", bold=True)
    sizes = words["sizes"].format(*preset.frame_size[::-1], *preset.final_size[::-1])
    drawing.text(LEFT, y + 68, sizes, 11.5, fill=SOFT)
    return drawing.svg()


def _row(drawing: Drawing, y: float, frames: int, level: int, name: str, below: str) -> None:
    """The frames of one level on the clock; those that this level draws are framed in green."""
    drawing.text(20, y + 2, name, 13, bold=True)
    drawing.text(20, y + 19, below, 11.5, fill=SOFT)
    old = set(noise_frame_indices(FRAME_COUNTS[level - 1])) if level else set()
    side = (44.0, 40.0, 28.0, 14.5)[level]
    for moment in noise_frame_indices(frames):
        x = LEFT + (WIDE - side) * moment / FINEST_FRAME_COUNT
        _frame(drawing, x, y - side / 2 + 4, side, 8, moment / FINEST_FRAME_COUNT, moment not in old)


def _frame(drawing: Drawing, x: float, y: float, side: float, cells: int, at: float, new: bool) -> None:
    """A frame of `cells` x `cells` tokens: something on green ground that has gone the share `at` of its way."""
    cell = side / cells
    rows, columns = np.indices((cells, cells))
    middle = round(at * (cells - cells // 4 - 1)) + cells // 8
    runner = (np.abs(columns - middle) <= cells // 8) & (np.abs(rows - cells // 2) <= cells // 8)
    drawing.rect(x, y, side, side, GREY)
    drawing.mask(x, y, cell, rows >= cells * 0.625, PALE_GREEN)
    drawing.mask(x, y, cell, runner, ORANGE)
    if cell > 2:
        drawing.lattice(x, y, cell, cells, cells, LINE)
    drawing.rect(x, y, side, side, "none", GREEN if new else BLUE)


DRAWINGS = {"overview": overview}

if __name__ == "__main__":
    write(DRAWINGS)
