"""Images and thumbnails: reading, encoding, and videos side by side."""

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
from cogvideo.messages import message


def side_by_side(videos: Sequence[Frames]) -> Frames:
    """Arrange up to four videos [F, H, W, 3] in a grid [F, 2H, 2W, 3], row by row; empty cells are white.

    A single video is returned unchanged.
    """
    if len(videos) == 1:
        return videos[0]
    cells = [*videos, *[np.full_like(videos[0], 255)] * (4 - len(videos))]
    return np.concatenate([np.concatenate(cells[row : row + 2], axis=2) for row in (0, 2)], axis=1)


THUMB = 96
"""Pixels of the longer side of a thumbnail."""


def thumbnail(frame: Frames) -> bytes:
    """Return a frame [H, W, 3] as WebP, at most THUMB pixels wide and high."""
    image = Image.fromarray(frame)
    image.thumbnail((THUMB, THUMB), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return buffer.getvalue()


def filmstrip(frames: Frames) -> bytes:
    """Return thumbnails of all frames [F, H, W, 3] side by side in one WebP."""
    thumbs = [Image.fromarray(frame) for frame in frames]
    for thumb in thumbs:
        thumb.thumbnail((THUMB, THUMB), Image.Resampling.BICUBIC)
    width, height = thumbs[0].size
    strip = Image.new("RGB", (width * len(thumbs), height))
    for column, thumb in enumerate(thumbs):
        strip.paste(thumb, (column * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "WEBP", quality=82)
    return buffer.getvalue()


FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS: Final = 50_000_000
"""Limit of an image's size; 200 MB when decoded, more than cameras produce."""
DECODE_LOCK: Final = threading.Lock()
"""Limits the memory of decoding: one image at a time."""


def read_image(path: Path, size: tuple[int, int]) -> Frames:
    """Read an image file, cropped to its centre and resized to `size` (height, width).

    Returns uint8 [H, W, 3]. Raises RequestError.
    """
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = Image.open(path, formats=FORMATS)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise RequestError(
                    *message(
                        "images.too_many_pixels",
                        width=image.width,
                        height=image.height,
                        max_pixels_zh=MAX_PIXELS // 10**4,
                        max_pixels_en=MAX_PIXELS // 10**6,
                    )
                )
            with DECODE_LOCK:
                return _fit(image, size)
    except (CogVideoError, MemoryError):
        raise
    except Exception as error:  # for an untrusted file, Pillow may raise anything
        raise RequestError(*message("images.unreadable")) from error


def _fit(image: Image.Image, size: tuple[int, int]) -> Frames:
    """Rotate by EXIF, replace transparency by white, crop to the centre and resize."""
    upright = ImageOps.exif_transpose(image).convert("RGBA")
    background = Image.new("RGBA", upright.size, "white")
    opaque = Image.alpha_composite(background, upright).convert("RGB")
    return np.asarray(ImageOps.fit(opaque, size[::-1], Image.Resampling.LANCZOS))


def data_uri(image: Frames) -> str:
    """Return an image uint8 [H, W, 3] as a data URI with a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
