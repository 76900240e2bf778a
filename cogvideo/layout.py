"""Token geometry of the three networks: grids, slots, positions, orders, masks, windows. No torch.

In: a `ModelConfig`. Out: integers and numpy arrays. Nothing else in the project counts tokens.

Words used here. A *frame* is `tokens_per_frame` tokens in row-major order; *slot* k of a frame is the input
position whose output predicts token k, so slot 0 holds <start_of_image> and slot k holds token k - 1. Frames are
numbered in time order unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from cogvideo.config import ModelConfig

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Stage = Literal[1, 2]


class Sight(Enum):
    """What a slot of one frame may attend to in a frame (its own or another)."""

    NONE = 0
    CAUSAL = 1
    """Slots up to and including its own number."""
    ALL = 2


@dataclass(frozen=True)
class Layout:
    """Geometry of one `ModelConfig`. Hashable; derived arrays are computed once and must not be written to."""

    config: ModelConfig

    def __post_init__(self) -> None:
        height, width = self.config.grid
        if height % self.config.window or width % self.config.window:
            raise ValueError(f"grid {self.config.grid} cannot be cut into windows of {self.config.window}")
        if self.image_start + self.tokens_per_frame >= self.config.base_positions:
            raise ValueError(
                f"{self.config.base_positions} base positions cannot hold text ({self.image_start}) and a frame "
                f"({self.tokens_per_frame})"
            )
        if self.later_positions > self.config.extra_positions:
            raise ValueError(
                f"{self.config.extra_positions} extra positions cannot hold the {self.later_positions} slots of "
                "the frames after the first"
            )

    # -- sizes -----------------------------------------------------------------------------------------------

    @property
    def tokens_per_frame(self) -> int:
        return self.config.tokens_per_frame

    @property
    def fine_tokens(self) -> int:
        """Tokens of a frame after super-resolution."""
        height, width = self.config.fine_grid
        return height * width

    @property
    def frames(self) -> int:
        """Frames of one sequence."""
        return self.config.keyframes

    @property
    def image_start(self) -> int:
        return self.config.image_start

    @property
    def later_positions(self) -> int:
        """Slots of all frames after the first."""
        return (self.frames - 1) * self.tokens_per_frame

    # -- positions -------------------------------------------------------------------------------------------

    @property
    def first_extra_position(self) -> int:
        """Positions from here on are rows 0, 1, ... of the extra position table."""
        return self.image_start + self.tokens_per_frame

    def frame_positions(self, frame: int) -> Indices:
        """Positions of the slots of `frame` (time order), [tokens_per_frame]."""
        return self.image_start + frame * self.tokens_per_frame + np.arange(self.tokens_per_frame)

    def superres_positions(self) -> Indices:
        """Positions of the coarse tokens in super-resolution: one later than the slots they were drawn in."""
        return self.image_start + 1 + np.arange(self.tokens_per_frame)

    # -- stage 2: which frames are given, and the order of decoding ---------------------------------------------

    @property
    def given(self) -> tuple[int, ...]:
        """Frames that stage 2 receives."""
        return tuple(range(0, self.frames, 2))

    @property
    def generated(self) -> tuple[int, ...]:
        """Frames that stage 2 draws between them."""
        return tuple(range(1, self.frames, 2))

    @property
    def stage2_order(self) -> tuple[int, ...]:
        """Time-order numbers of the frames in decoding order: `decoding = [clip[i] for i in stage2_order]`."""
        return self.given + self.generated

    @property
    def stage2_revert(self) -> tuple[int, ...]:
        """Inverse of `stage2_order`: `clip = [decoding[i] for i in stage2_revert]`."""
        return tuple(self.stage2_order.index(frame) for frame in range(self.frames))

    # -- who sees whom -----------------------------------------------------------------------------------------

    def spatial_sight(self, stage: Stage, frame: int) -> Sight:
        """What slots of `frame` see of it in the backbone's own channel; there they see text and no other frame."""
        return Sight.ALL if stage == 2 and frame in self.given else Sight.CAUSAL

    def temporal_sight(self, stage: Stage, frame: int, seen: int) -> Sight:
        """What slots of `frame` see of frame `seen` in `attention_plus`, in stage 2 within their own region."""
        if stage == 2 and seen in self.given:
            return Sight.ALL
        if seen > frame or (stage == 2 and frame in self.given):
            return Sight.NONE
        return Sight.CAUSAL if seen == frame else Sight.ALL

    def shift(self, layer: int) -> int:
        """By how many cells the windows of stage 2 are shifted in `layer`, down and to the right."""
        return self.config.window // 2 if layer % 2 else 0

    def regions(self, shift: int) -> Indices:
        """Number of the region that each cell belongs to, [tokens_per_frame]; cells see each other within one.

        A region is a window, or what the grid's border leaves of a shifted one.
        """
        rows, columns = self._cells
        width, window = self.config.grid[1], self.config.window
        down = (rows + window - shift) // window
        right = (columns + window - shift) // window
        return np.asarray(down * (width // window + 2) + right, dtype=np.int64)

    @lru_cache  # noqa: B019 - layouts are few and live as long as their model
    def windows(self, shift: int) -> Indices:
        """Cells of each window of the grid rolled by `shift`, [windows, window * window].

        All windows have the same size; where the roll wraps around, one holds cells of several `regions`.
        """
        height, width = self.config.grid
        window = self.config.window
        cells = np.arange(self.tokens_per_frame).reshape(height, width)
        rolled = np.roll(cells, (-shift, -shift), axis=(0, 1))
        tiles = rolled.reshape(height // window, window, width // window, window).swapaxes(1, 2)
        return np.sort(tiles.reshape(-1, window * window), axis=1)

    @lru_cache  # noqa: B019
    def window_mask(self, shift: int) -> Mask:
        """Stage 2, temporal channel: who sees whom inside each window, [windows, frames * w * w, frames * w * w].

        Within a window, slots are ordered by frame (time order), then by slot as in `windows`.
        """
        cells = self.windows(shift)  # [windows, w * w], ascending
        region = self.regions(shift)[cells]
        near = region[:, :, None] == region[:, None, :]
        causal = near & (cells[:, :, None] >= cells[:, None, :])
        blocks = {Sight.NONE: np.zeros_like(near), Sight.CAUSAL: causal, Sight.ALL: near}
        rows = [
            np.concatenate([blocks[self.temporal_sight(2, frame, seen)] for seen in range(self.frames)], axis=2)
            for frame in range(self.frames)
        ]
        return np.concatenate(rows, axis=1)

    def spatial_mask(self, stage: Stage, frame: int) -> Mask:
        """Spatial channel within `frame`: [slot, seen slot]."""
        full = np.ones((self.tokens_per_frame, self.tokens_per_frame), dtype=np.bool_)
        return full if self.spatial_sight(stage, frame) is Sight.ALL else np.tril(full)

    def region_mask(self, layer: int) -> Mask:
        """Stage 2: cells that share a region in `layer`, [cell, seen cell]."""
        region = self.regions(self.shift(layer))
        return np.asarray(region[:, None] == region[None, :])

    # -- private -----------------------------------------------------------------------------------------------

    @cached_property
    def _cells(self) -> tuple[Indices, Indices]:
        """Row and column of each cell."""
        rows, columns = np.divmod(np.arange(self.tokens_per_frame), self.config.grid[1])
        return rows, columns
