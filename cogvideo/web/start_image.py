"""The first frame that a visitor gives: a picture of any size -> pixels as the model takes them; what the page shows.

No torch, no Gradio. The tokens travel with the page itself, so that the server need not remember them.
"""

from __future__ import annotations

import base64
import io
import threading
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps

from cogvideo.errors import CogVideoError, RequestError
from cogvideo.events import Frames
from cogvideo.token_frames import TokenFrames

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS: Final = 50_000_000
"""More than cameras make; unpacked, these are 200 MB."""
UNPACKING: Final = threading.Lock()
"""One picture at a time, however many are sent."""


def read_picture(path: Path, size: tuple[int, int]) -> Frames:
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


def start_value(first: TokenFrames, seen: str, given: str | None = None) -> dict[str, Any]:
    """What the page keeps of a first frame. `seen`: address of what the model sees, `given`: of the picture itself."""
    return {"packed": first.packed, "seen": seen, "given": given}


def start_of(value: Any) -> TokenFrames | None:
    """The inverse of `start_value`, None where the page has no first frame. The model checks the tokens themselves."""
    packed = value.get("packed") if isinstance(value, dict) else None
    return TokenFrames(1, packed) if isinstance(packed, str) else None


def last_frame(clip: TokenFrames) -> TokenFrames:
    """The frame that a clip ends with."""
    return TokenFrames.of(clip.rows()[-1:])
