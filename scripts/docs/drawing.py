"""A small SVG canvas for the drawings of docs/: what `scripts/docs/draw_*.py` have in common.

In: rectangles, masks, words, arrows in pixels. Out: the text of a file, the same on every machine, so that a test can
hold the committed drawing against what the script makes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "drawings"

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

INK, SOFT, LINE, PAPER = "#1f2933", "#6b7684", "#c3ccd8", "#ffffff"
BLUE, PALE_BLUE = "#2f6fd0", "#a9c8f5"
GREEN, PALE_GREEN = "#2e9e6b", "#bfe6d2"
ORANGE, PALE_ORANGE = "#d9731a", "#f8d9b5"
GREY = "#e9edf2"

FONT = "system-ui, 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"


def number(value: float) -> str:
    """A coordinate without needless digits."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


class Drawing:
    """An SVG that grows. All sizes in pixels, y downwards; `title` is what a screen reader says."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: float = 0
    ) -> None:
        edge = "" if stroke == "none" else f' stroke="{stroke}"'
        corner = f' rx="{number(radius)}"' if radius else ""
        size = f'width="{number(width)}" height="{number(height)}"'
        self.parts.append(f'<rect x="{number(x)}" y="{number(y)}" {size}{corner} fill="{fill}"{edge}/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        size: float = 12,
        anchor: Literal["start", "middle", "end"] = "start",
        fill: str = INK,
        bold: bool = False,
    ) -> None:
        """`y` is the baseline."""
        style = f'font-size="{number(size)}" text-anchor="{anchor}" fill="{fill}"'
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(f'<text x="{number(x)}" y="{number(y)}" {style}{weight}>{escape(words)}</text>')

    def line(self, points: Sequence[tuple[float, float]], stroke: str = SOFT, width: float = 1.5) -> None:
        way = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        self.parts.append(f'<polyline points="{way}" fill="none" stroke="{stroke}" stroke-width="{number(width)}"/>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float, stroke: str = SOFT) -> None:
        """A straight line with a head at its end."""
        length = float(np.hypot(to_x - x, to_y - y))
        ahead_x, ahead_y = (to_x - x) / length, (to_y - y) / length
        foot_x, foot_y = to_x - 7 * ahead_x, to_y - 7 * ahead_y
        self.line([(x, y), (foot_x, foot_y)], stroke)
        corners = [
            (to_x, to_y),
            (foot_x - 3.5 * ahead_y, foot_y + 3.5 * ahead_x),
            (foot_x + 3.5 * ahead_y, foot_y - 3.5 * ahead_x),
        ]
        way = " ".join(f"{number(a)},{number(b)}" for a, b in corners)
        self.parts.append(f'<polygon points="{way}" fill="{stroke}"/>')

    def mask(self, x: float, y: float, cell: float, seen: npt.NDArray[np.bool_], fill: str) -> None:
        """The True cells of `seen` [rows, columns] as squares of side `cell`, each run of a row drawn at once."""
        strokes = []
        for row, values in enumerate(seen):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], values.astype(np.int8), [0]])))
            for start, end in zip(edges[::2], edges[1::2]):
                wide = number((end - start) * cell)
                at = f"{number(x + start * cell)} {number(y + row * cell)}"
                strokes.append(f"M{at}h{wide}v{number(cell)}h-{wide}z")
        if strokes:
            self.parts.append(f'<path d="{"".join(strokes)}" fill="{fill}"/>')

    def lattice(self, x: float, y: float, cell: float, rows: int, columns: int, stroke: str = LINE) -> None:
        """The lines of a grid of square cells."""
        down, right = number(rows * cell), number(columns * cell)
        lines = [f"M{number(x)} {number(y + i * cell)}h{right}" for i in range(rows + 1)]
        lines += [f"M{number(x + i * cell)} {number(y)}v{down}" for i in range(columns + 1)]
        self.parts.append(f'<path d="{"".join(lines)}" fill="none" stroke="{stroke}" stroke-width="0.6"/>')

    def legend(self, x: float, y: float, entries: Iterable[tuple[str, str]]) -> None:
        """Squares of a colour with a word behind each, one below the other."""
        for i, (fill, words) in enumerate(entries):
            self.rect(x, y + 20 * i, 12, 12, fill, LINE)
            self.text(x + 19, y + 20 * i + 10.5, words)

    def svg(self) -> str:
        width, height = number(self.width), number(self.height)
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" font-family="{escape(FONT)}">'
        )
        paper = f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>'
        return "\n".join([head, f"<title>{escape(self.title)}</title>", paper, *self.parts, "</svg>\n"])


Draw = Callable[[Language], str]


def write(drawings: Mapping[str, Draw]) -> None:
    """Writes every drawing in both languages: docs/drawings/NAME_LANGUAGE.svg."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in drawings.items():
        for language in LANGUAGES:
            path = FOLDER / f"{name}_{language}.svg"
            path.write_text(draw(language), encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")
