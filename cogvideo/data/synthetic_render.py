"""Rendering of the synthetic world: frames uint8 [F, H, W, 3] of a clip, and the subject's mask.

Frames are rendered at `FINE` pixels a cell, and small frames are averages of large ones. Sprites are Debian's Noto
Color Emoji (OFL), which is needed for training only.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

from cogvideo.data.synthetic_vocabulary import SCENES, SUBJECTS
from cogvideo.data.synthetic_world import FIELD, Clip, State
from cogvideo.errors import WeightsError
from cogvideo.events import Frames
from cogvideo.messages import message

COARSE: Final = 8
"""Pixels of a cell's side in small frames."""
FINE: Final = 24
"""Pixels of a cell's side in super-resolved frames."""

FONT_PATHS: Final = (
    Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
    Path("/usr/share/fonts/noto/NotoColorEmoji.ttf"),
)
_FONT_SIZE: Final = 109  # the only size of bitmaps in the font
_CANVAS: Final = 6 * FINE  # room for a subject of four cells at any angle

Image32 = npt.NDArray[np.float32]


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    for path in FONT_PATHS:
        if path.exists():
            return ImageFont.truetype(str(path), _FONT_SIZE)
    raise WeightsError(*message("synthetic_render.emoji_font_missing", font_paths=FONT_PATHS[0]))


@lru_cache(maxsize=len(SUBJECTS))
def _glyph(subject: int) -> Image.Image:
    """Draw the emoji, cropped and centred on a square of its longer side."""
    glyph = Image.new("RGBA", (136, 128))
    ImageDraw.Draw(glyph).text((0, 0), SUBJECTS[subject].emoji, font=_font(), embedded_color=True)
    box = glyph.getbbox()
    glyph = glyph.crop(box)
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side))
    square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    return square


@lru_cache(maxsize=8192)
def _sprite(subject: int, side: int, angle: float, cell: int) -> tuple[Image32, Image32]:
    """Return premultiplied colour [S, S, 3] in 0..255 and opacity [S, S, 1] of a sprite `side` fine pixels wide."""
    glyph = _glyph(subject).convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBa", (_CANVAS, _CANVAS))
    canvas.paste(glyph, ((_CANVAS - side) // 2, (_CANVAS - side) // 2))
    if angle:
        canvas = canvas.rotate(-angle, Image.Resampling.BICUBIC)
    pixels = np.asarray(canvas, dtype=np.float32)  # [S, S, 4]
    factor = FINE // cell
    size = _CANVAS // factor
    pixels = pixels.reshape(size, factor, size, factor, 4).mean((1, 3))
    return pixels[..., :3], pixels[..., 3:] / 255.0


_PALETTE: Final = {  # sky, horizon band, ground, detail
    "草地": ("#bfe6ff", "#8fcf6a", "#7cc35a", "#5aa53f"),
    "雪地": ("#cfd8ea", "#f4f7fc", "#e9eff8", "#b9c7de"),
    "大海": ("#ffe3c2", "#4f9fdc", "#3b8ccf", "#8cc8f0"),
    "夜空": ("#141b3c", "#1b2550", "#1b2550", "#ffe9a8"),
    "沙漠": ("#ffd9a0", "#e8b867", "#dfa953", "#c98f3c"),
    "街道": ("#c9d3dc", "#8f8a96", "#62626b", "#f2f2f2"),
}


PLAIN: Final = -1
"""Scene of one colour. Only training uses it, to get a subject's tokens without a background."""
_PLAIN_COLOUR: Final = "#bfe6ff"


def _draw_detail(draw: ImageDraw.ImageDraw, scene: str, x: int, y: int, colour: str) -> None:
    """Draw the detail that every ground cell of a scene repeats; (x, y) is the cell's corner in fine pixels."""
    if scene == "草地":
        for dx, height in ((5, 7), (9, 10), (13, 6)):
            draw.line((x + dx, y + 17, x + dx + 1, y + 17 - height), fill=colour, width=2)
    elif scene == "雪地":
        draw.ellipse((x + 5, y + 6, x + 8, y + 9), fill=colour)
        draw.ellipse((x + 15, y + 15, x + 18, y + 18), fill=colour)
    elif scene == "大海":
        draw.arc((x + 2, y + 8, x + 13, y + 18), 180, 360, fill=colour, width=2)
        draw.arc((x + 12, y + 8, x + 23, y + 18), 180, 360, fill=colour, width=2)
    elif scene == "夜空":
        draw.polygon(((x + 12, y + 7), (x + 14, y + 11), (x + 12, y + 15), (x + 10, y + 11)), fill=colour)
    elif scene == "沙漠":
        draw.arc((x + 1, y + 9, x + 22, y + 23), 200, 340, fill=colour, width=2)
    else:
        draw.rectangle((x + 4, y + 11, x + 17, y + 13), fill=colour)


@lru_cache(maxsize=64)
def background(scene: int, variant: int, cell: int) -> Image32:
    """Draw a scene [H, W, 3] in 0..255 with patterns that repeat with the cell; `variant` moves the horizon."""
    if scene == PLAIN:
        colour = np.array(ImageColor.getrgb(_PLAIN_COLOUR), np.float32)
        return np.broadcast_to(colour, (FIELD * cell, FIELD * cell, 3))
    name = SCENES[scene]
    sky, band, ground, detail = _PALETTE[name]
    horizon = (4, 5)[variant]
    side = FIELD * FINE
    picture = Image.new("RGB", (side, side), sky)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, horizon * FINE, side, (horizon + 1) * FINE), fill=band)
    draw.rectangle((0, (horizon + 1) * FINE, side, side), fill=ground)
    for column in range(FIELD):
        x = column * FINE
        if name == "街道":
            draw.rectangle((x + 3, (horizon - 1) * FINE, x + 20, horizon * FINE - 1), fill="#9aa7b5")
            for wx, wy in ((6, 5), (13, 5), (6, 14), (13, 14)):
                y = (horizon - 1) * FINE + wy
                draw.rectangle((x + wx, y, x + wx + 4, y + 5), fill="#fff3c4")
        for row in range(FIELD):
            starry = name == "夜空" and (row + column) % 2 == 0
            if starry or (name != "夜空" and row > horizon):
                _draw_detail(draw, name, x, row * FINE, detail)
    pixels = np.asarray(picture, dtype=np.float32)
    factor = FINE // cell
    size = side // factor
    return np.ascontiguousarray(pixels.reshape(size, factor, size, factor, 3).mean((1, 3)))


def render_state(subject: int, scene: int, variant: int, state: State, cell: int = COARSE) -> tuple[Frames, Image32]:
    """Render a frame [H, W, 3] with `cell` pixels a cell, and the subject's opacity [H, W] in 0..1."""
    picture = background(scene, variant, cell).copy()
    mask = np.zeros(picture.shape[:2], np.float32)
    # With an even side the sprite's centre is on a pixel corner, like the canvas's.
    side = max(2, 2 * round(state.size * FINE / 2))
    colour, opacity = _sprite(subject, side, round(state.angle, 3), cell)
    extent, limit = colour.shape[0], picture.shape[0]
    top = round(state.y * cell) - extent // 2
    left = round(state.x * cell) - extent // 2
    y0, y1 = max(top, 0), min(top + extent, limit)
    x0, x1 = max(left, 0), min(left + extent, limit)
    if y0 < y1 and x0 < x1:
        part = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
        picture[y0:y1, x0:x1] = picture[y0:y1, x0:x1] * (1 - opacity[part]) + colour[part]
        mask[y0:y1, x0:x1] = opacity[part][..., 0]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), mask


def render_clip(clip: Clip, frames: int = 5, cell: int = COARSE) -> Frames:
    """Render the clip's frames [F, H, W, 3], evenly spaced over its duration."""
    times = clip.frame_times(frames)
    return np.stack([render_state(clip.subject, clip.scene, clip.variant, s, cell)[0] for s in clip.states(times)])
