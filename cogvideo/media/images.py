"""Several videos as one, so that they can be compared while they play."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cogvideo.events import Frames


def side_by_side(videos: Sequence[Frames]) -> Frames:
    """Up to four videos [F, H, W, 3] -> one [F, H, W, 3], or [F, 2H, 2W, 3], row by row; white where none is left."""
    if len(videos) == 1:
        return videos[0]
    four = [*videos, *[np.full_like(videos[0], 255)] * (4 - len(videos))]
    return np.concatenate([np.concatenate(four[row : row + 2], axis=2) for row in (0, 2)], axis=1)
