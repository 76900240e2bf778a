"""Frames as image tokens [F, N], packed into a string that fits a database row. Equal tokens give equal strings.

First frames and unfinished videos are passed around and stored in this form. This module imports no NumPy.
"""

from __future__ import annotations

import base64
import binascii
import sys
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from cogvideo.errors import RequestError
from cogvideo.messages import message


@dataclass(frozen=True)
class TokenFrames:
    """`num_frames` frames with the same number of tokens each."""

    num_frames: int
    packed: str
    """base64 of the zlib-compressed tokens, two bytes each, little-endian."""

    def __post_init__(self) -> None:
        if type(self.num_frames) is not int or not isinstance(self.packed, str):
            raise _damaged()

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]]) -> TokenFrames:
        """Pack tokens [F, N], each 0 .. 65535."""
        words = array("H", [token for frame in tokens for token in frame])
        packed = zlib.compress(_little(words), 9)
        return cls(len(tokens), base64.b64encode(packed).decode())

    def rows(self) -> list[list[int]]:
        """Return the tokens [F, N]. Raises RequestError if the string is damaged."""
        try:
            words = array("H", _inflate(base64.b64decode(self.packed, validate=True)))
        except (binascii.Error, zlib.error, ValueError) as error:
            raise _damaged() from error
        if sys.byteorder == "big":
            words.byteswap()
        if self.num_frames < 1 or not words or len(words) % self.num_frames:
            raise _damaged()
        size = len(words) // self.num_frames
        return [words[at : at + size].tolist() for at in range(0, len(words), size)]


def _inflate(data: bytes) -> bytes:
    """Decompress at most 33 frames of 64 x 64 tokens: a limit against inputs that would exhaust memory.

    Raises ValueError.
    """
    limit = 2 * 33 * 64 * 64
    plain = zlib.decompressobj().decompress(data, limit + 1)
    if len(plain) > limit:
        raise ValueError(f"more than {limit} bytes")
    return plain


def _little(words: array[int]) -> bytes:
    if sys.byteorder == "big":
        words = array("H", words)
        words.byteswap()
    return words.tobytes()


def _damaged() -> RequestError:
    return RequestError(*message("token_frames.initial_frames_damaged"))


def last_frame(clip: TokenFrames) -> TokenFrames:
    """Return the last frame of a video. Raises RequestError if `clip` is damaged."""
    return TokenFrames.of(clip.rows()[-1:])
