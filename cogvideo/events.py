"""Events of the generation of a video, in the order in which they occur.

`CogVideoPipeline.stream` yields them, the worker in `cogvideo.jobs` logs them, the page and the command line display
them. Frames are uint8 arrays [F, H, W, 3], RGB. Token counts are exact: they follow from the geometry alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Tokens = npt.NDArray[np.int64]
StageName = Literal["load", "drafts", "keyframes", "interpolate", "superres"]


@dataclass(frozen=True)
class Loading:
    """Progress of loading: `done` of `total` components are loaded, `part` is the current one."""

    part: str
    done: int
    total: int
    message: tuple[str, str] | None = None
    """Message about the files (zh, en), shown after the weights have loaded."""


@dataclass(frozen=True)
class Progress:
    """Progress of the whole video: `done` of `total` tokens, now in `stage`.

    One unit is one token of one frame, super-resolution included. Hence done / total is monotone and reaches 1 exactly
    at the end.
    """

    stage: StageName
    done: int
    total: int


@dataclass(frozen=True)
class KeyframePreview:
    """An unfinished keyframe. Rows not generated yet have the mean colour."""

    index: int
    tokens: int
    frame: Frames  # [H, W, 3]
    draft: int = 0
    """Number of the draft, from 0."""


@dataclass(frozen=True)
class KeyframeCompleted:
    """The final keyframe `index` (0..4) of video `draft`."""

    index: int
    frame: Frames  # [H, W, 3]
    draft: int = 0


@dataclass(frozen=True)
class RoundCompleted:
    """A completed round: 0 = the keyframes alone, 1..3 = 9, 17, 33 frames.

    The frames of drafts show all videos in a grid of two columns.
    """

    round: int
    frames: Frames  # [F, H, W, 3]
    tokens: Tokens | None = None  # [B, F, N], of B videos; a later run can continue from them


@dataclass(frozen=True)
class FrameUpscaled:
    """Frame `index` of the video at its final size, in the order of completion."""

    index: int
    total: int
    frame: Frames  # [H', W', 3]


@dataclass(frozen=True)
class VideoCompleted:
    """The whole video. Always the last event."""

    frames: Frames  # [F, H', W', 3]
    frames_per_second: float
    seed: int


Event = Loading | Progress | KeyframePreview | KeyframeCompleted | RoundCompleted | FrameUpscaled | VideoCompleted
