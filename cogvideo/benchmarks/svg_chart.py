"""Bar chart of stage times as an SVG, without a plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, BAR, GAP, LEFT, RIGHT, TOP = 760, 18, 16, 130, 190, 64

Bar = tuple[str, float, float, float | None]
"""Name, seconds, floor in seconds, seconds of the 2022 release's algorithm."""


def stage_bars(title: str, note: str, bars: Sequence[Bar]) -> str:
    """Return a chart with a row for each stage: time (light), floor (dark), the release's time (outline)."""
    longest = max(max(seconds, release or 0.0) for _, seconds, _, release in bars)
    scale = (WIDTH - LEFT - RIGHT) / longest if longest else 0.0
    height = TOP + len(bars) * (BAR + GAP) + 26
    body = [row for i, bar in enumerate(bars) for row in _row(bar, TOP + i * (BAR + GAP), scale)]
    legend = "dark: the floor; light: measured" + ("; outline: the 2022 release's algorithm" if _compared(bars) else "")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
            f'height="{height}" font-family="system-ui, sans-serif" font-size="12" fill="#1f2933">',
            f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
            f'<text x="20" y="28" font-size="14" font-weight="600">{escape(title)}</text>',
            f'<text x="20" y="46" fill="#6b7684">{escape(note)}; {escape(legend)}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _compared(bars: Sequence[Bar]) -> bool:
    return any(release is not None for *_, release in bars)


def _row(bar: Bar, y: int, scale: float) -> list[str]:
    name, seconds, floor, release = bar
    middle, wide = y + BAR - 5, max(1.0, seconds * scale)
    label = f"{seconds:.2f} s, {min(1.0, floor / seconds):.0%} floor" if seconds else "0 s"
    parts = [f'<text x="{LEFT - 10}" y="{middle}" text-anchor="end">{escape(name)}</text>']
    end = wide
    if release is not None:
        end = max(wide, release * scale)
        parts.append(_rect(y - 3, release * scale, BAR + 6, 'fill="none" stroke="#b8c0cc" stroke-dasharray="3 2"'))
        label += f" (x{release / seconds:.1f})"
    parts.append(_rect(y, wide, BAR, 'fill="#a9c8f5"'))
    parts.append(_rect(y, min(wide, floor * scale), BAR, 'fill="#2f6fd0"'))
    parts.append(f'<text x="{LEFT + end + 8:.1f}" y="{middle}" fill="#3e4c59">{escape(label)}</text>')
    return parts


def _rect(y: float, width: float, height: float, style: str) -> str:
    return f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{height}" rx="3" {style}/>'
