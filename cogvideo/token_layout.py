"""Token geometry of the three networks: grids, slots, positions, orders, masks, windows.

In: a `ModelConfig`. Out: integers and numpy arrays. All token arithmetic of the project is in this module.

Terms: a *frame* is `tokens_per_frame` tokens in row-major order. *Slot* k of a frame is the input position whose
output predicts token k. Hence slot 0 holds `<start_of_image>`, and slot k holds token k - 1. Frames are numbered in
time order unless a name states otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from cogvideo.config import ModelConfig

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Stage = Literal[1, 2]


class Visibility(Enum):
    """The part of a frame that a slot attends to; the frame is its own or another one."""

    NONE = auto()
    CAUSAL = auto()
    """Slots up to its own number, included."""
    ALL = auto()


class KeyRange(NamedTuple):
    """A range of keys in a cache that a slot attends to: start .. end - 1. The slot's own key is the last."""

    start: int
    end: int


class TemporalKeyLayout:
    """Order of the temporal keys in a cache, such that all keys of a generated slot are contiguous.

    Each region has one section (stage 1: a single region). A section holds a copy of the text, then the cells of the
    region frame by frame in decoding order. A slot attends to its region's section up to its own key.
    """

    def __init__(self, text: int, order: tuple[int, ...], regions: Indices) -> None:
        """Compute the sections. `order`: frames in decoding order; `regions`: see `TokenLayout.regions`."""
        self.text = text
        self.order = order
        self._region = regions
        sizes = np.bincount(regions)
        widths = text + len(order) * sizes
        self._starts = np.cumsum(widths) - widths  # [regions]
        self._sizes = sizes
        self._rank = np.zeros(len(regions), dtype=np.int64)  # index of each cell within its region
        for region in range(len(sizes)):
            self._rank[self._region == region] = np.arange(sizes[region])
        self.capacity = int(widths.sum())

    def frame_slots(self, frame: int) -> Indices:
        """Return the cache index of the key of each cell of `frame`, [tokens_per_frame]."""
        before = self.text + self.order.index(frame) * self._sizes  # [regions]
        return np.asarray((self._starts + before)[self._region] + self._rank)

    def text_slots(self) -> Indices:
        """Return the cache indices of the copies of the text, [regions, text]."""
        return np.asarray(self._starts[:, None] + np.arange(self.text))

    def key_ranges(self, frame: int) -> list[KeyRange]:
        """Return the keys that each slot of a generated `frame` attends to. The first `text` of them are the text."""
        return [
            KeyRange(int(start), int(own) + 1)
            for start, own in zip(self._starts[self._region], self.frame_slots(frame), strict=True)
        ]


@dataclass(frozen=True)
class TokenLayout:
    """Geometry of one `ModelConfig`. Hashable. Derived arrays are computed once and must not be modified.

    Raises ValueError if the sizes of `config` are inconsistent.
    """

    config: ModelConfig

    def __post_init__(self) -> None:
        height, width = self.config.grid
        if height % self.config.window or width % self.config.window:
            raise ValueError(f"grid {self.config.grid} cannot be divided into windows of {self.config.window}")
        if self.image_start + self.tokens_per_frame >= self.config.base_positions:
            raise ValueError(
                f"{self.config.base_positions} base positions cannot hold text ({self.image_start}) and a frame "
                f"({self.tokens_per_frame})"
            )
        if self.num_later_positions > self.config.extra_positions:
            raise ValueError(
                f"{self.config.extra_positions} extra positions cannot hold the {self.num_later_positions} slots of "
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
    def num_later_positions(self) -> int:
        """Slots of all frames after the first."""
        return (self.frames - 1) * self.tokens_per_frame

    # -- positions -------------------------------------------------------------------------------------------

    def frame_rows(self, frame: int) -> Indices:
        """Return the rows of the slots of `frame` in their position table, [tokens_per_frame].

        The first frame uses the backbone's table, from `image_start`. The others use the extra table.
        """
        before = self.image_start if frame == 0 else (frame - 1) * self.tokens_per_frame
        return before + np.arange(self.tokens_per_frame)

    def superres_positions(self) -> Indices:
        """Return the positions of the coarse tokens in super-resolution: one after the slots that predicted them."""
        return self.image_start + 1 + np.arange(self.tokens_per_frame)

    # -- stage 2: which frames are given, and the order of decoding ---------------------------------------------

    @property
    def given(self) -> tuple[int, ...]:
        """Frames that stage 2 receives."""
        return tuple(range(0, self.frames, 2))

    @property
    def generated(self) -> tuple[int, ...]:
        """Frames that stage 2 generates between the given ones."""
        return tuple(range(1, self.frames, 2))

    @property
    def stage2_order(self) -> tuple[int, ...]:
        """Time-order numbers of the frames in decoding order: `decoding = [video[i] for i in stage2_order]`."""
        return self.given + self.generated

    @property
    def stage2_revert(self) -> tuple[int, ...]:
        """Inverse of `stage2_order`: `video = [decoding[i] for i in stage2_revert]`."""
        return tuple(self.stage2_order.index(frame) for frame in range(self.frames))

    # -- visibility --------------------------------------------------------------------------------------------

    def spatial_visibility(self, stage: Stage, frame: int) -> Visibility:
        """Return what slots of `frame` attend to within it in the spatial channel.

        In this channel they attend to the text as well, but to no other frame.
        """
        return Visibility.ALL if stage == 2 and frame in self.given else Visibility.CAUSAL

    def temporal_visibility(self, stage: Stage, frame: int, seen: int) -> Visibility:
        """Return what slots of `frame` attend to in frame `seen` in the temporal channel.

        In stage 2 this is limited to the slot's own region.
        """
        if stage == 2 and seen in self.given:
            return Visibility.ALL
        if seen > frame or (stage == 2 and frame in self.given):
            return Visibility.NONE
        return Visibility.CAUSAL if seen == frame else Visibility.ALL

    def shift(self, layer: int) -> int:
        """Return by how many cells `layer` shifts the windows of stage 2, down and to the right."""
        return self.config.window // 2 if layer % 2 else 0

    def regions(self, shift: int) -> Indices:
        """Return the region number of each cell, [tokens_per_frame]. Cells attend to cells of their own region.

        A region is a window, or the part of a shifted window inside the grid. Numbers start at 0, in reading order.
        """
        down, right = ((cells - shift) // self.config.window for cells in self._cells)  # from -1 if shifted
        return np.unique(down * self.config.grid[1] + right, return_inverse=True)[1]

    @property
    def wavefront_lag(self) -> int:
        """Slots by which a generated frame of stage 2 must follow the generated frame before it.

        Slot k attends to all cells of earlier generated frames in its own region, on even and on odd layers. With this
        lag all of them are complete in earlier steps. A region is at most a window, whose last cell is `window - 1`
        rows and as many columns after its first.
        """
        return (self.config.window - 1) * (self.config.grid[1] + 1) + 1

    @lru_cache  # noqa: B019 - layouts are few and live as long as their model
    def windows(self, shift: int) -> Indices:
        """Return the cells of each window of the grid rolled by `shift`, [windows, window * window].

        All windows have the same size. Windows that wrap around contain cells of several `regions`.
        """
        height, width = self.config.grid
        window = self.config.window
        cells = np.arange(self.tokens_per_frame).reshape(height, width)
        rolled = np.roll(cells, (-shift, -shift), axis=(0, 1))
        tiles = rolled.reshape(height // window, window, width // window, window).swapaxes(1, 2)
        return np.sort(tiles.reshape(-1, window * window), axis=1)

    @lru_cache  # noqa: B019
    def window_mask(self, shift: int, frames: tuple[int, ...]) -> Mask:
        """Return the mask of stage 2's temporal channel in each window, [windows, F * w * w, F * w * w].

        Within a window, slots are ordered by frame as in `frames` (F of them), then by cell as in `windows`.
        """
        cells = self.windows(shift)  # [windows, w * w], ascending
        region = self.regions(shift)[cells]
        near = region[:, :, None] == region[:, None, :]
        causal = near & (cells[:, :, None] >= cells[:, None, :])
        blocks = {Visibility.NONE: np.zeros_like(near), Visibility.CAUSAL: causal, Visibility.ALL: near}
        rows = [
            np.concatenate([blocks[self.temporal_visibility(2, frame, seen)] for seen in frames], axis=2)
            for frame in frames
        ]
        return np.concatenate(rows, axis=1)

    def spatial_mask(self, stage: Stage, frame: int) -> Mask:
        """Return the mask of the spatial channel within `frame`: [query slot, key slot]."""
        full = np.ones((self.tokens_per_frame, self.tokens_per_frame), dtype=np.bool_)
        return full if self.spatial_visibility(stage, frame) is Visibility.ALL else np.tril(full)

    def region_mask(self, layer: int) -> Mask:
        """Return which cells share a region in `layer` of stage 2: [query cell, key cell]."""
        region = self.regions(self.shift(layer))
        return np.asarray(region[:, None] == region[None, :])

    # -- the cache of the temporal channel: the keys of a slot are contiguous ------------------------------------

    @lru_cache  # noqa: B019
    def temporal_keys(self, stage: Stage, layer: int, text: int) -> TemporalKeyLayout:
        """Return the order of the temporal keys in the cache of `layer` (by its parity), with `text` text slots."""
        size = self.tokens_per_frame
        if stage == 1:
            return TemporalKeyLayout(text, tuple(range(self.frames)), np.zeros(size, dtype=np.int64))
        return TemporalKeyLayout(text, self.stage2_order, self.regions(self.shift(layer)))

    # -- private -----------------------------------------------------------------------------------------------

    @cached_property
    def _cells(self) -> tuple[Indices, Indices]:
        """Row and column of each cell, both [tokens_per_frame]."""
        rows, columns = np.divmod(np.arange(self.tokens_per_frame), self.config.grid[1])
        return rows, columns
