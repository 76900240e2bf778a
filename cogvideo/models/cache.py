"""Keys and values of what has been read and drawn, in storage made once and written in place.

In: keys and values of a pass (`keep_*`) or of one slot (`spatial`, `temporal`). Out: what a slot sees, as views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cogvideo.layout import Layout, Shelf, Stage, Stretch
from cogvideo.models.attention import Seen, additive


class CacheFull(IndexError):
    """A slot was to be kept for which there is no place: a mistake of the caller, never of the user."""


class Place(NamedTuple):
    """A slot to be drawn."""

    frame: int
    """Time-order number within the sequence."""
    slot: int


class Run(NamedTuple):
    """Slots of one step whose places follow each other: each sees what lies before all of them, and those before it."""

    stretch: Stretch
    """What the last of them sees."""
    slots: int
    mask: Tensor | None


class Arena:
    """Keys and values of one layer and channel: [2, B, heads, capacity, d]."""

    def __init__(self, rows: int, heads: int, capacity: int, size: int, like: Tensor) -> None:
        self.capacity = capacity
        self.k_v = like.new_empty(2, rows, heads, capacity, size)

    def append(self, run: Run, k_v: Tensor) -> Seen:
        """Keep k_v [2, B, heads, slots, d] at the end of the run's stretch; views of all that is in the stretch."""
        (start, end), slots, mask = run
        if end > self.capacity:
            raise CacheFull(f"place {end - 1} of a cache of {self.capacity}")
        # `narrow` and `unbind`, since indexing costs as much as the copy of a small step
        self.k_v.narrow(3, end - slots, slots).copy_(k_v)
        k, v = self.k_v.narrow(3, start, end - start).unbind(0)
        return Seen(k, v, mask, slots)


class _Drawn:
    """A frame being drawn: where its slots are kept and what they see."""

    def __init__(
        self, layout: Layout, shelves: Sequence[Shelf], frame: int, start: int, text: int, like: Tensor
    ) -> None:
        """`start`: where its compartment in the spatial channel begins: text, then its own slots."""
        self.rows = torch.as_tensor(layout.frame_rows(frame), device=like.device)[None]  # [1, N]
        self.own = [Stretch(start, start + text + slot + 1) for slot in range(layout.tokens_per_frame)]
        self.across = [shelf.stretches(frame) for shelf in shelves]


class Cache:
    """The cache of one batch of rows while frames of it are drawn. Rows may have texts of different length.

    text: slots of the left-padded text. given: frames that `VideoLM.prefill` reads. both: whether the temporal channel
    takes part; the first frame is drawn without. boost: added to the scores of frame and text. lanes: how many frames
    are drawn at the same time. like: a tensor on the right device, of the right type.
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
        lanes: int = 1,
    ) -> None:
        config = layout.config
        if text > layout.image_start:
            raise ValueError(
                f"{text} text slots run into the first frame's positions, which start at {layout.image_start}"
            )
        self.layout, self.stage, self.rows, self.text = layout, stage, rows, text
        self.given, self.both, self.boost, self.lanes = given, both, boost, lanes
        self._like = like
        sizes = (rows, config.heads)
        self._lane = text + layout.tokens_per_frame
        self._spatial = [Arena(*sizes, lanes * self._lane, config.head_size, like) for _ in range(config.layers)]
        self._shelves = [layout.shelf(stage, parity, text) for parity in (0, 1)]
        self._temporal = [
            Arena(*sizes, self._shelves[layer % 2].capacity, config.head_size, like)
            for layer in range(config.layers if both else 0)
        ]
        self._mask: Tensor | None = None
        self._drawn: dict[int, _Drawn] = {}
        # What the slots of the present step see: in their own frame; across frames on even and on odd layers.
        self._own: list[Run] = []
        self._across: tuple[list[Run], ...] = ([], [])

    # -- reading the text and the given frames --------------------------------------------------------------------

    def set_text(self, seen: Tensor) -> None:
        """seen [B, T]: which text slots are real."""
        self._mask = None
        if self.boost or not bool(seen.all()):
            widest = self.text + self.layout.frames * self.layout.tokens_per_frame
            self._mask = self._like.new_zeros(self.rows, 1, 1, widest)
            self._mask[:, 0, 0, : self.text] = additive(seen, self._like.dtype) + self.boost

    def keep_spatial(self, layer: int, k: Tensor, v: Tensor) -> None:
        """The text's keys and values, of [B, heads, T + F * N, d]: a drawn frame sees no other frame here."""
        for kept, new in zip(self._spatial[layer].k_v, (k, v), strict=True):
            lanes = kept.unflatten(2, (self.lanes, self._lane))  # [B, heads, lanes, T + N, d]
            lanes[:, :, :, : self.text] = new[:, :, None, : self.text]

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

    def seek(self, places: Sequence[Place]) -> Tensor:
        """The slots of the next step -> their rows in their position table, [1, Q]. Slots of a frame are ascending."""
        drawn = [self._frame(frame) for frame, _ in places]
        for _, slot in places:
            if not 0 <= slot < self.layout.tokens_per_frame:
                raise CacheFull(f"slot {slot} of a frame of {self.layout.tokens_per_frame}")
        slots = [(frame, place.slot) for frame, place in zip(drawn, places, strict=True)]
        self._own = self._runs([frame.own[slot] for frame, slot in slots])
        if self.both:
            self._across = tuple(self._runs([frame.across[i][slot] for frame, slot in slots]) for i in (0, 1))
        rows = [frame.rows[:, slot : slot + 1] for frame, slot in slots]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def spatial(self, layer: int, k_v: Tensor) -> list[Seen]:
        """Keep k_v [2, B, heads, Q, d] of the step's slots -> what each sees of text and its own frame."""
        return _append(self._spatial[layer], self._own, k_v)

    def temporal(self, layer: int, k_v: Tensor) -> list[Seen]:
        """As `spatial`, for the channel across frames."""
        return _append(self._temporal[layer], self._across[layer % 2], k_v)

    # -- private -----------------------------------------------------------------------------------------------

    def _frame(self, frame: int) -> _Drawn:
        if frame not in self._drawn:
            if not 0 <= frame < (self.layout.frames if self.both else 1):
                raise CacheFull(f"frame {frame} has no place in this cache")
            start = len(self._drawn) % self.lanes * self._lane
            shelves = self._shelves if self.both else ()
            self._drawn[frame] = _Drawn(self.layout, shelves, frame, start, self.text, self._like)
        return self._drawn[frame]

    def _runs(self, stretches: list[Stretch]) -> list[Run]:
        """Neighbours together, with the part of the mask that is as long: text comes first in every stretch."""
        joined: list[tuple[Stretch, int]] = []
        for start, end in stretches:
            if joined and joined[-1][0] == (start, end - 1):
                joined[-1] = (Stretch(start, end), joined[-1][1] + 1)
            else:
                joined.append((Stretch(start, end), 1))
        return [Run(stretch, slots, self._masked(stretch.end - stretch.start, slots)) for stretch, slots in joined]

    def _masked(self, length: int, slots: int) -> Tensor | None:
        text = None if self._mask is None else self._mask[..., :length]
        if slots == 1:
            return text
        later = self._like.new_full((slots, length), float("-inf")).triu_(length - slots + 1)
        return later[None, None] if text is None else text + later


def _append(arena: Arena, runs: list[Run], k_v: Tensor) -> list[Seen]:
    if len(runs) == 1:
        return [arena.append(runs[0], k_v)]
    parts = k_v.split([run.slots for run in runs], dim=3)
    return [arena.append(run, part) for run, part in zip(runs, parts, strict=True)]
