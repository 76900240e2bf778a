"""The three steps of a video, tokens in and tokens out: keyframes, interpolate, superres.

Each is a generator that is given a model and never names a device; between two tokens it can be left for good.
Frames are numbered on the clock of the longest clip (0..32), whatever the clip's own number of frames, so that a frame
draws the same noise in a clip of 9 frames as in one of 33.
"""

from __future__ import annotations

from typing import Final

from cogvideo.config import CLIP_FRAMES

FINEST: Final = CLIP_FRAMES[-1] - 1
"""Steps of the clock: keyframes stand at 0, 8, 16, 24, 32."""


def moments(frames: int) -> list[int]:
    """Where `frames` evenly spaced frames stand on the clock; one alone stands at its beginning."""
    if frames == 1:
        return [0]
    return [i * FINEST // (frames - 1) for i in range(frames)]
