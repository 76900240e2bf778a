"""Settings of a video, read from the comment in its mp4 or gif file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

MAX_COMMENT: Final = 2**16
"""Characters of a comment; longer ones are ignored."""

Metadata = Mapping[str, Any]


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in the comment of an mp4 or gif; None if there is none. Safe for untrusted files."""
    comment = _gif_comment(path) if path.suffix.lower() == ".gif" else _mp4_comment(path)
    if len(comment) > MAX_COMMENT:
        return None
    try:
        values = json.loads(comment)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _gif_comment(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path, formats=["GIF"]) as picture:
            comment = picture.info.get("comment", b"")
    except Exception:  # for an untrusted file, Pillow may raise anything
        return ""
    return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else str(comment)


def _mp4_comment(path: Path) -> str:
    from moviepy.config import FFMPEG_BINARY

    source = ["-f", "mp4", "-protocol_whitelist", "file", "-i", f"file:{path.absolute()}"]
    command = [FFMPEG_BINARY, "-nostdin", "-v", "quiet", *source, "-f", "ffmetadata", "-"]
    try:
        text = subprocess.run(command, capture_output=True, timeout=20, check=True).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.SubprocessError):
        return ""
    return _ffmetadata(text).get("comment", "")


def _ffmetadata(text: str) -> dict[str, str]:
    r"""Parse ffmpeg's text format: `key=value` lines, where \ escapes = ; # \ and line breaks."""
    values: dict[str, str] = {}
    key, current, characters = None, "", iter(text)
    for character in characters:
        if character == "\\":
            current += next(characters, "")
        elif character == "=" and key is None:
            key, current = current, ""
        elif character == "\n":
            if key is not None:
                values[key] = current
            key, current = None, ""
        else:
            current += character
    return values
