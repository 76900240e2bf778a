"""Frames as image tokens [F, N], packed into a string: small enough for a row of a database, equal when alike.

What a video goes on from travels like this: a first frame, or all frames that were drawn so far. No torch, no NumPy.
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


@dataclass(frozen=True)
class TokenFrames:
    """`frames` frames of equally many tokens each."""

    num_frames: int
    packed: str
    """base64 of the deflated tokens, two bytes each, the lower first."""

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
        """The tokens [F, N]. Raises RequestError where the string was tampered with."""
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
    """At most the tokens of 33 frames of 64 by 64: whoever sends more wants to fill the memory."""
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
    return RequestError(
        "起始画面的数据已损坏：请重新选择起始画面，或去掉它。",
        "The frames to start from are damaged: choose them again, or leave them out.",
    )


def last_frame(clip: TokenFrames) -> TokenFrames:
    """The frame that a clip ends with."""
    return TokenFrames.of(clip.rows()[-1:])
