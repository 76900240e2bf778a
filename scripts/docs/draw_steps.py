"""Draws how frames are put between frames, and the two ways to draw tokens in fewer steps, from the code itself.

python scripts/docs/draw_steps.py writes docs/drawings/{interpolation,wavefront,speculation}_{en,zh}.svg.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from cogvideo.config import FRAME_COUNTS, PRESETS  # noqa: E402
from cogvideo.inference.decoding import jacobi_decode, schedule  # noqa: E402
from cogvideo.inference.sampling import FINEST_FRAME_COUNT, noise_frame_indices  # noqa: E402
from cogvideo.token_layout import TokenLayout  # noqa: E402
from cogvideo.tokenizers.text import duration_text, round_seconds  # noqa: E402
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

SECONDS = 4.0


def duration(seconds: float) -> str:
    """The words that the text of a window of `seconds` begins with."""
    letters: Any = SimpleNamespace(encode=list, token=str)  # a tokenizer whose pieces are the letters themselves
    return "".join(str(piece) for piece in duration_text(letters, seconds))


def interpolation(language: Language) -> str:
    """The keyframes and three rounds on the clock of a clip of four seconds, with each round's duration token."""
    words: dict[Language, tuple[str, str, str, str]] = {
        "en": ("Recursive interpolation", "{} frames", "stage 1", "stage 2, round {}"),
        "zh": ("递归插帧", "{} 帧", "第一阶段", "第二阶段，第 {} 轮"),
    }
    title, count, first, later = words[language]
    drawing = Drawing(800, 336, title)
    drawing.text(20, 30, title, 15, bold=True)
    left, wide = 220.0, 540.0
    spans = [SECONDS, *round_seconds(SECONDS, len(FRAME_COUNTS) - 1)]
    known: set[int] = set()
    for level, (frames, span) in enumerate(zip(FRAME_COUNTS, spans)):
        y = 78.0 + 62 * level
        drawing.text(20, y, count.format(frames), 13, bold=True)
        drawing.text(20, y + 17, later.format(level) if level else first, 11.5, fill=SOFT)
        drawing.text(left - 20, y + 4, duration(span), 12, "end", ORANGE)
        drawing.line([(left, y), (left + wide, y)], LINE, 1)
        block = wide * span / SECONDS  # five frames of this level, the duration that their text begins with
        drawing.line([(left, y + 13), (left, y + 18), (left + block, y + 18), (left + block, y + 13)], ORANGE, 1.5)
        side = 15 if level < 2 else 11
        for moment in noise_frame_indices(frames):
            x = left + wide * moment / FINEST_FRAME_COUNT
            fill, edge = (PALE_BLUE, BLUE) if moment in known else (GREEN, GREEN)
            drawing.rect(x - side / 2, y - side / 2, side, side, fill, edge, 2)
        known |= set(noise_frame_indices(frames))
    for second in range(int(SECONDS) + 1):
        drawing.text(left + wide * second / SECONDS, 306, f"{second} s", 11, "middle", SOFT)
    legend: dict[Language, tuple[str, str, str]] = {
        "en": (
            "drawn in this step",
            "there already",
            "five frames; the duration token says how long they last",
        ),
        "zh": ("本步生成", "已有", "五帧为一段，时长 token 说明这一段有多长"),
    }
    for x, fill, name in zip((20, 170, 290), (GREEN, PALE_BLUE, PALE_ORANGE), legend[language]):
        drawing.rect(x, 318, 11, 11, fill, LINE)
        drawing.text(x + 17, 328, name, 11.5)
    return drawing.svg()


def wavefront(language: Language) -> str:
    """One after the other, and one `wavefront_lag` slots behind the other; and a moment of the latter on the grid."""
    layout = TokenLayout(PRESETS["cogvideo"].model)
    size, lag = layout.tokens_per_frame, layout.wavefront_lag
    words: dict[Language, tuple[str, str, str, str, str, str]] = {
        "en": (
            "The wavefront: frame 3 follows frame 1 by {} tokens",
            "one after the other: {} steps",
            "as a wavefront: {} steps",
            "step {}: frame 1",
            "step {}: frame 3",
            "Black: being drawn. Green: what frame 3's cell sees of frame 1 on even and on odd layers. It is complete.",
        ),
        "zh": (
            "波前：第 3 帧落后第 1 帧 {} 个 token",
            "依次生成：{} 步",
            "波前生成：{} 步",
            "第 {} 步：第 1 帧",
            "第 {} 步：第 3 帧",
            "黑色：正在生成。绿线：第 3 帧的这个格子（偶数层与奇数层）在第 1 帧里看得到的区域，都已画完。",
        ),
    }
    title, sequential, overlapped, first, second, why = words[language]
    drawing = Drawing(760, 470, title)
    drawing.text(20, 30, title.format(lag), 15, bold=True)
    scale = 700 / (2 * size)
    for row, (name, behind) in enumerate(((sequential, size), (overlapped, lag))):
        y = 62.0 + 62 * row
        drawing.text(20, y, name.format(len(schedule(layout.generated, size, behind))), 12.5)
        for i, frame in enumerate(layout.generated):
            x = 20 + scale * behind * i
            drawing.rect(x, y + 8 + 15 * i, scale * size, 13, (PALE_BLUE, PALE_GREEN)[i], (BLUE, GREEN)[i], 3)
            drawing.text(x + 6, y + 18.5 + 15 * i, str(frame), 10.5)
    step = 290
    places = dict(schedule(layout.generated, size, lag)[step])
    for i, (frame, name) in enumerate(zip(layout.generated, (first, second))):
        _grid(drawing, layout, 110.0 + 300 * i, 210, places[frame], (PALE_BLUE, PALE_GREEN)[i], name.format(step))
    _seen(drawing, layout, 110, 210, places[layout.generated[1]])
    drawing.text(20, 456, why, 11.5, fill=SOFT)
    return drawing.svg()


GRID_CELL = 11.0


def _grid(drawing: Drawing, layout: TokenLayout, x: float, y: float, slot: int, fill: str, name: str) -> None:
    """A frame whose cells before `slot` are drawn."""
    height, width = layout.config.grid
    drawing.text(x, y - 9, name, 12.5)
    drawing.rect(x, y, width * GRID_CELL, height * GRID_CELL, GREY)
    cells = np.arange(layout.tokens_per_frame).reshape(height, width)
    drawing.mask(x, y, GRID_CELL, cells < slot, fill)
    drawing.lattice(x, y, GRID_CELL, height, width)
    drawing.mask(x, y, GRID_CELL, cells == slot, INK)


def _seen(drawing: Drawing, layout: TokenLayout, x: float, y: float, slot: int) -> None:
    """The outline of what `slot` sees of an earlier drawn frame, for each parity of the layer."""
    for layer in (0, 1):
        rows, columns = np.divmod(np.flatnonzero(layout.region_mask(layer)[slot]), layout.config.grid[1])
        left, top = float(columns.min()) * GRID_CELL, float(rows.min()) * GRID_CELL
        wide = float(np.ptp(columns) + 1) * GRID_CELL
        tall = float(np.ptp(rows) + 1) * GRID_CELL
        inset = 1.5 * layer  # two outlines that share an edge stay two
        corners = [
            (x + left + inset, y + top + inset),
            (x + left + wide - inset, y + top + inset),
            (x + left + wide - inset, y + top + tall - inset),
            (x + left + inset, y + top + tall - inset),
            (x + left + inset, y + top + inset),
        ]
        drawing.line(corners, GREEN, 2)


class Rule:
    """A network of one rule, for the drawing.

    Every token is the old frame's; only where something moves it depends on the token before it.
    """

    layout = TokenLayout(replace(PRESETS["mini"].model, grid=(4, 4), window=2))
    config = layout.config
    transformer = SimpleNamespace(word_embeddings=SimpleNamespace(weight=torch.zeros(1)))
    old = torch.tensor([2, 2, 3, 3, 2, 5, 6, 3, 4, 7, 8, 4, 1, 1, 1, 1])
    moving = (5, 6, 9, 10)

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def decode_one(self, cache: Any, ids: Tensor, places: Sequence[Any], guidance: float | None) -> Tensor:
        """ids [1, places] -> scores [1, places, 16] whose highest is the rule's token."""
        self.steps.append((places[0].slot, len(places)))
        return torch.stack([self.scores(int(held), place.slot) for held, place in zip(ids[0], places)])[None]

    def scores(self, held: int, slot: int) -> Tensor:
        token = (int(held) * 3 + 1) % 16 if slot in self.moving else int(self.old[slot])
        return torch.nn.functional.one_hot(torch.tensor(token), 16).float()


def speculation_steps(ahead: int) -> tuple[list[tuple[int, int, int]], list[int]]:
    """What `decode.speculate` does with the rule: (first slot, slots read, slots kept) of each step; the tokens."""
    rule = Rule()
    cache: Any = SimpleNamespace(rows=1)
    lm: Any = rule
    kept: dict[int, int] = {}
    tokens = []
    for token in jacobi_decode(lm, cache, 1, lambda scores, frame, slot: scores.argmax(-1), ahead, rule.old[None]):
        kept[len(rule.steps)] = kept.get(len(rule.steps), 0) + 1
        tokens.append(int(token.ids))
    return [(slot, read, kept[i]) for i, (slot, read) in enumerate(rule.steps, 1)], tokens


def speculation(language: Language) -> str:
    """Each step of `decode.speculate` as a row: what it reads, what it may keep."""
    words: dict[Language, tuple[str, str, str, str, str]] = {
        "en": (
            "Looking ahead (Jacobi's iteration): {} tokens in {} steps",
            "step {}",
            "kept: what drawing one by one gives",
            "read, to be guessed again",
            "The first guess is the frame before. Tokens 5, 6, 9 and 10 are where something moves.",
        ),
        "zh": (
            "向前多看几步（Jacobi 迭代）：{} 个 token 只用 {} 步",
            "第 {} 步",
            "保留：与逐个生成完全相同",
            "已读，下一步再猜",
            "最初的猜测是上一帧。第 5、6、9、10 个 token 处有东西在动。",
        ),
    }
    title, name, kept_words, read_words, note = words[language]
    steps, tokens = speculation_steps(8)
    cell, left = 34.0, 100.0
    drawing = Drawing(680, 122 + 34 * len(steps), title)
    drawing.text(20, 30, title.format(len(tokens), len(steps)), 15, bold=True)
    for slot in range(len(tokens)):
        moving = slot in Rule.moving
        drawing.text(left + cell * (slot + 0.5), 60, str(slot), 11, "middle", ORANGE if moving else SOFT, moving)
    for i, (slot, read, kept) in enumerate(steps):
        y = 68.0 + 34 * i
        drawing.text(left - 14, y + 19, name.format(i + 1), 12, "end", SOFT)
        drawing.rect(left, y, cell * slot, 28, GREY)
        for at in range(slot, slot + read):
            fill, edge = (PALE_GREEN, GREEN) if at < slot + kept else (PALE_ORANGE, ORANGE)
            drawing.rect(left + cell * at + 1, y, cell - 2, 28, fill, edge, 3)
            if at < slot + kept:
                drawing.text(left + cell * (at + 0.5), y + 19, str(tokens[at]), 12, "middle")
    bottom = 88.0 + 34 * len(steps)
    for x, fill, label in ((20, PALE_GREEN, kept_words), (270, PALE_ORANGE, read_words)):
        drawing.rect(x, bottom - 6, 11, 11, fill, LINE)
        drawing.text(x + 17, bottom + 4, label, 11.5)
    drawing.text(20, bottom + 24, note, 11.5, fill=SOFT)
    return drawing.svg()


DRAWINGS = {"interpolation": interpolation, "wavefront": wavefront, "speculation": speculation}

if __name__ == "__main__":
    write(DRAWINGS)
