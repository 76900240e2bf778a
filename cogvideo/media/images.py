"""Several videos as one, so that they can be compared while they play."""

from __future__ import annotations

import base64
import io
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from cogvideo.errors import CogVideoError, RequestError
from cogvideo.events import Frames


def side_by_side(videos: Sequence[Frames]) -> Frames:
    """Up to four videos [F, H, W, 3] -> one [F, H, W, 3], or [F, 2H, 2W, 3], row by row; white where none is left."""
    if len(videos) == 1:
        return videos[0]
    four = [*videos, *[np.full_like(videos[0], 255)] * (4 - len(videos))]
    return np.concatenate([np.concatenate(four[row : row + 2], axis=2) for row in (0, 2)], axis=1)


THUMB = 96
"""Pixels of the longer side of a thumbnail."""


def thumbnail(frame: Frames) -> bytes:
    """A frame [H, W, 3] as WebP, at most THUMB pixels wide and high."""
    image = Image.fromarray(frame)
    image.thumbnail((THUMB, THUMB), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return buffer.getvalue()


def filmstrip(frames: Frames) -> bytes:
    """All frames [F, H, W, 3] side by side in one WebP, thumbnail size each."""
    thumbs = [Image.fromarray(frame) for frame in frames]
    for thumb in thumbs:
        thumb.thumbnail((THUMB, THUMB), Image.Resampling.BICUBIC)
    width, height = thumbs[0].size
    strip = Image.new("RGB", (width * len(thumbs), height))
    for place, thumb in enumerate(thumbs):
        strip.paste(thumb, (place * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=82)
    return buffer.getvalue()


FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS: Final = 50_000_000
"""More than cameras make; unpacked, these are 200 MB."""
UNPACKING: Final = threading.Lock()
"""One picture at a time, however many are sent."""


def read_image(path: Path, size: tuple[int, int]) -> Frames:
    """The middle of a picture file of any size, as uint8 [H, W, 3] with `size` (height, width). Raises RequestError."""
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise RequestError(
                    f"图片有 {image.width}×{image.height} 像素，上限为 {MAX_PIXELS // 10**6} 百万：请先缩小它。",
                    f"The picture has {image.width} by {image.height} pixels, {MAX_PIXELS // 10**6} million at most: "
                    "make it smaller first.",
                )
            with UNPACKING:
                return _fit(image, size)
    except (CogVideoError, MemoryError):
        raise
    except Exception as error:  # a stranger's file: Pillow raises whatever comes up
        raise RequestError(
            "这个文件不是能读取的图片：请选择 JPEG、PNG、WebP、GIF、BMP 或 TIFF 图片。",
            "This file is no picture that can be read: choose a JPEG, PNG, WebP, GIF, BMP or TIFF.",
        ) from error


def _fit(image: Image.Image, size: tuple[int, int]) -> Frames:
    """Upright, on white where it is transparent, cut to the frame's shape around its middle."""
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    ground = Image.new("RGBA", upright.size, "white")
    opaque = Image.alpha_composite(ground, upright).convert("RGB")
    return np.asarray(ImageOps.fit(opaque, size[::-1], Image.Resampling.LANCZOS))


def data_uri(picture: Frames) -> str:
    """A picture uint8 [H, W, 3] as a PNG that needs no file."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
