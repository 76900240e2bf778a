"""What a running video tells the world, in the order in which it happens. No torch.

`CogVideoPipeline.stream` yields these; the worker in `cogvideo.jobs` logs them; the page and the command line show
them. Frames are uint8 arrays [F, H, W, 3], RGB. Token counts are exact: they come from the geometry alone.
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
    """Models are being read; `done` of `total` parts are there."""

    part: str
    done: int
    total: int
    message: tuple[str, str] | None = None
    """What there is to tell of the files, zh and en, once they are read."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` tokens of the whole video are drawn; `stage` says which network is at work.

    One unit is one token of one frame, super-resolution included, so that done / total is monotone and
    reaches 1 exactly at the end.
    """

    stage: StageName
    done: int
    total: int


@dataclass(frozen=True)
class KeyframePreview:
    """A keyframe while it is being drawn: rows not yet drawn repeat the mean colour. For previews only."""

    index: int
    tokens: int
    frame: Frames  # [H, W, 3]
    draft: int = 0
    """Which of several videos drawn side by side."""


@dataclass(frozen=True)
class KeyframeCompleted:
    """Keyframe `index` (0..4) of video `draft` is final."""

    index: int
    frame: Frames  # [H, W, 3]
    draft: int = 0


@dataclass(frozen=True)
class RoundCompleted:
    """Interpolation level `level` is complete: 0 = the keyframes alone, 1..3 = 9, 17, 33 frames.

    Of drafts the frames show all videos at once, two by two.
    """

    round: int
    frames: Frames  # [F, H, W, 3]
    tokens: Tokens | None = None  # [B, F, N], of B videos; what a later run can go on from


@dataclass(frozen=True)
class FrameUpscaled:
    """Frame `index` of the final clip at its final size, in the order in which they are ready."""

    index: int
    total: int
    frame: Frames  # [H', W', 3]


@dataclass(frozen=True)
class VideoCompleted:
    """The whole clip. Always the last event."""

    frames: Frames  # [F, H', W', 3]
    frames_per_second: float
    seed: int


Event = Loading | Progress | KeyframePreview | KeyframeCompleted | RoundCompleted | FrameUpscaled | VideoCompleted
