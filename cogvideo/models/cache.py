"""Keys and values of what has been read and drawn, in storage made once and written in place.

In: keys and values of a pass (`keep_*`) or of one slot (`spatial`, `temporal`). Out: what a slot sees, as views.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cogvideo.layout import Layout, Stage, Stretch
from cogvideo.models.attention import additive


class CacheFull(IndexError):
    """A slot was to be kept for which there is no place: a mistake of the caller, never of the user."""


class Arena:
    """Keys and values of one layer and channel: [2, B, heads, capacity, d]."""

    def __init__(self, rows: int, heads: int, capacity: int, size: int, like: Tensor) -> None:
        self.capacity = capacity
        self.k_v = like.new_empty(2, rows, heads, capacity, size)

    def append(self, stretch: Stretch, k_v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k_v [2, B, heads, 1, d] at the end of `stretch`; views of the stretch's keys and of its values."""
        start, end = stretch
        if end > self.capacity:
            raise CacheFull(f"place {end - 1} of a cache of {self.capacity}")
        self.k_v[:, :, :, end - 1 : end] = k_v
        seen = self.k_v[:, :, :, start:end]
        return seen[0], seen[1]


class Cache:
    """The cache of one batch of rows while frames of it are drawn. Rows may have texts of different length.

    text: slots of the left-padded text. given: frames that `VideoLM.prefill` reads. both: whether the temporal channel
    takes part; the first frame is drawn without. boost: added to the scores of frame and text. like: a tensor on the
    right device, of the right type.
    """

    def __init__(
        self,
        layout: Layout,
        stage: Stage,
        rows: int,
        text: int,
        given: tuple[int, ...],
        both: bool,
        boost: float,
        like: Tensor,
    ) -> None:
        config = layout.config
        if text > layout.image_start:
            raise ValueError(
                f"{text} text slots run into the first frame's positions, which start at {layout.image_start}"
            )
        self.layout, self.stage, self.rows, self.text = layout, stage, rows, text
        self.given, self.both, self.boost = given, both, boost
        self._like = like
        sizes = (rows, config.heads)
        frame = text + layout.tokens_per_frame
        self._spatial = [Arena(*sizes, frame, config.head_size, like) for _ in range(config.layers)]
        self._shelves = [layout.shelf(stage, parity, text) for parity in (0, 1)]
        self._temporal = [
            Arena(*sizes, self._shelves[layer % 2].capacity, config.head_size, like)
            for layer in range(config.layers if both else 0)
        ]
        self._bias: Tensor | None = None
        self._own_bias: Tensor | None = None
        self._across_bias: tuple[Tensor | None, Tensor | None] = (None, None)
        self._frame = -1

    # -- reading the text and the given frames --------------------------------------------------------------------

    def set_text(self, seen: Tensor) -> None:
        """seen [B, T]: which text slots are real."""
        self._bias = None
        if self.boost or not bool(seen.all()):
            widest = self.text + self.layout.frames * self.layout.tokens_per_frame
            self._bias = self._like.new_zeros(self.rows, 1, 1, widest)
            self._bias[:, 0, 0, : self.text] = additive(seen, self._like.dtype) + self.boost

    def keep_spatial(self, layer: int, k: Tensor, v: Tensor) -> None:
        """The text's keys and values, of [B, heads, T + F * N, d]: a drawn frame sees no other frame here."""
        for kept, new in zip(self._spatial[layer].k_v, (k, v), strict=True):
            kept[:, :, : self.text] = new[:, :, : self.text]

    def keep_temporal(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keys and values of text and given frames, [B, heads, T + F * N, d]."""
        shelf = self._shelves[layer % 2]
        texts = torch.as_tensor(shelf.text_places(), device=k.device)  # [regions, T]
        frames = [torch.as_tensor(shelf.frame_places(frame), device=k.device) for frame in self.given]
        for kept, new in zip(self._temporal[layer].k_v, (k, v), strict=True):
            for places in texts:
                kept[:, :, places] = new[:, :, : self.text]
            if frames:
                kept[:, :, torch.cat(frames)] = new[:, :, self.text :]

    # -- drawing -----------------------------------------------------------------------------------------------

    def seek(self, frame: int, slot: int) -> Tensor:
        """The next slot is `slot` of `frame`. -> its row in its position table, [1, 1]."""
        if frame != self._frame:
            self._open(frame)
        if not 0 <= slot < self.layout.tokens_per_frame:
            raise CacheFull(f"slot {slot} of a frame of {self.layout.tokens_per_frame}")
        self._own = Stretch(0, self.text + slot + 1)
        self._across = (self._stretches[0][slot], self._stretches[1][slot])
        if self._bias is not None:
            self._own_bias = self._bias[..., : self._own.end]
            even, odd = self._across
            self._across_bias = (self._bias[..., : even.end - even.start], self._bias[..., : odd.end - odd.start])
        return self._rows[:, slot : slot + 1]

    def _open(self, frame: int) -> None:
        if not 0 <= frame < (self.layout.frames if self.both else 1):
            raise CacheFull(f"frame {frame} has no place in this cache")
        self._frame = frame
        self._rows = torch.as_tensor(self.layout.frame_rows(frame), device=self._like.device)[None]
        self._stretches = [shelf.stretches(frame) for shelf in self._shelves]

    def spatial(self, layer: int, k_v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keep k_v [2, B, heads, 1, d] of the slot -> keys and values it sees [B, heads, seen, d], bias."""
        return *self._spatial[layer].append(self._own, k_v), self._own_bias

    def temporal(self, layer: int, k_v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `spatial`, for the channel across frames."""
        parity = layer % 2
        return *self._temporal[layer].append(self._across[parity], k_v), self._across_bias[parity]
