"""KV cache: which slots a step writes, and which keys and values it attends to.

In: keys and values of a pass (`write_*`) or of one slot. Out: views of what a slot attends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.models.attention import attend_step, merge_heads, to_additive_mask
from cogvideo.models.kv_storage import CacheOverflowError, Int8KVBuffer, KVBuffer, SlotRun, append_runs
from cogvideo.token_layout import KeyRange, Stage, TemporalKeyLayout, TokenLayout
from kernels.cpu_decode import KVBuffers
from kernels.decode_attention import decode_attention, unsupported_reason
from kernels.reference import Channel


class TokenSlot(NamedTuple):
    """A slot to be drawn."""

    frame: int
    """Time-order number within the sequence."""
    slot: int


def fast_path_unsupported_reason(config: ModelConfig, like: Tensor, int8: bool) -> str | None:
    """Why the fast kernel, and with it captured steps, cannot serve such a cache, in words; None: it can."""
    probe = like.new_empty(1, 1, 1, config.head_size)
    return "keys and values are in 8 bits" if int8 else unsupported_reason([Channel(probe, probe, probe)])


class _WrittenSlots:
    """A frame being drawn: where its slots are kept and what they see."""

    def __init__(
        self, layout: TokenLayout, shelves: Sequence[TemporalKeyLayout], frame: int, start: int, text: int, like: Tensor
    ) -> None:
        """`start`: where its compartment in the spatial channel begins: text, then its own slots."""
        self.rows = torch.as_tensor(layout.frame_rows(frame), device=like.device)[None]  # [1, N]
        self.own = [KeyRange(start, start + text + slot + 1) for slot in range(layout.tokens_per_frame)]
        self.across = [shelf.key_ranges(frame) for shelf in shelves]


class KVCache:
    """The cache of one batch of rows while frames of it are drawn. Rows may have texts of different length.

    text: slots of the left-padded text. given: frames that `VideoLM.prefill` reads. both: whether the temporal channel
    takes part; the first frame is drawn without. boost: added to the scores of frame and text. lanes: how many frames
    are drawn at the same time. like: a tensor on the right device, of the right type. int8: see `Int8Arena`.
    """

    def __init__(
        self,
        layout: TokenLayout,
        stage: Stage,
        rows: int,
        text: int,
        given: tuple[int, ...],
        use_temporal: bool,
        text_attention_bias: float,
        like: Tensor,
        parallel_frames: int = 1,
        int8: bool = False,
    ) -> None:
        config = layout.config
        if text > layout.image_start:
            raise ValueError(
                f"{text} text slots run into the first frame's positions, which start at {layout.image_start}"
            )
        self.layout, self.stage, self.rows, self.text = layout, stage, rows, text
        self.num_given, self.use_temporal, self.text_attention_bias, self.parallel_frames = (
            given,
            use_temporal,
            text_attention_bias,
            parallel_frames,
        )
        self.like = like
        sizes = (rows, config.heads)
        self._lane = text + layout.tokens_per_frame
        arena = Int8KVBuffer if int8 else KVBuffer
        self._spatial = [
            arena(*sizes, parallel_frames * self._lane, config.head_size, like) for _ in range(config.layers)
        ]
        self._shelves = [layout.temporal_keys(stage, parity, text) for parity in (0, 1)]
        self._temporal = [
            arena(*sizes, self._shelves[layer % 2].capacity, config.head_size, like)
            for layer in range(config.layers if use_temporal else 0)
        ]
        self.text_bias: Tensor | None = None  # [B, T], added to the scores of frames and text
        self._mask: Tensor | None = None
        self._drawn: dict[int, _WrittenSlots] = {}
        self.slots: Sequence[TokenSlot] = ()  # of the present step
        # What its slots see: in their own frame; across frames on even and on odd layers.
        self._own: list[SlotRun] | None = None
        self._across: list[list[SlotRun] | None] = [None, None]
        self._arenas: KVBuffers | None = None
        self.graphs: dict[object, object] = {}
        """What `VideoLM` has captured of its steps on this storage."""
        # Frames that are drawn, in the order of drawing.
        self.drawn = tuple(f for f in range(layout.frames) if f not in given) if use_temporal else (0,)
        self._numbers: _SlotIndices | None = None
        self.fast_path_unsupported_reason = fast_path_unsupported_reason(config, like, int8)
        """Why the fast kernel does not attend here, in words; None: it does."""

    # -- reading the text and the given frames --------------------------------------------------------------------

    def set_text(self, seen: Tensor) -> None:
        """seen [B, T]: which text slots are real. A captured step finds them where those of the last text were."""
        self._mask, scores = None, to_additive_mask(seen, self.like.dtype) + self.text_attention_bias
        if self.fast_path_unsupported_reason is None and self.text_bias is not None:
            self.text_bias.copy_(scores)
        elif self.fast_path_unsupported_reason is None or self.text_attention_bias or not bool(seen.all()):
            self.text_bias = scores
        else:
            self.text_bias = None
        if self.text_bias is not None:
            widest = self.text + self.layout.frames * self.layout.tokens_per_frame
            self._mask = self.like.new_zeros(self.rows, 1, 1, widest)
            self._mask[:, 0, 0, : self.text] = self.text_bias

    def write_spatial(self, layer: int, k: Tensor, v: Tensor) -> None:
        """The text's keys and values, of [B, heads, T + F * N, d]: a drawn frame sees no other frame here."""
        tokens, places = self.spatial_slots().to(k.device)
        self._spatial[layer].write(places, torch.stack((k, v))[:, :, :, tokens])

    def write_temporal(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keys and values of text and given frames, [B, heads, T + F * N, d]."""
        tokens, places = self.temporal_slots(layer % 2).to(k.device)
        self._temporal[layer].write(places, torch.stack((k, v))[:, :, :, tokens])

    def spatial_slots(self) -> Tensor:
        """Which of the tokens that are read the spatial channel keeps, and where, [2, K]: in each lane the text."""
        tokens = torch.arange(self.text).expand(self.parallel_frames, -1)
        return torch.stack((tokens, tokens + torch.arange(self.parallel_frames)[:, None] * self._lane)).flatten(1)

    def temporal_slots(self, parity: int) -> Tensor:
        """The same for the temporal channel of even or odd layers, [2, K]: in each region the text, then all frames."""
        shelf, size = self._shelves[parity], self.layout.tokens_per_frame
        texts = torch.as_tensor(shelf.text_slots())  # [regions, T]
        frames = [torch.as_tensor(shelf.frame_slots(frame)) for frame in self.num_given]
        tokens = [torch.arange(self.text).repeat(len(texts)), self.text + torch.arange(len(frames) * size)]
        return torch.stack((torch.cat(tokens), torch.cat([texts.flatten(), *frames])))

    @property
    def nbytes(self) -> int:
        """Of the storage."""
        return sum(arena.nbytes for arena in (*self._spatial, *self._temporal))

    def mark_all_written(self) -> None:
        """Pretend that everything has been drawn: for measuring in the middle of a clip."""
        for arena in (*self._spatial, *self._temporal):
            arena.k_v.zero_()

    # -- drawing -----------------------------------------------------------------------------------------------

    def select_slots(self, places: Sequence[TokenSlot]) -> None:
        """The slots of the next step. Slots of a frame are ascending."""
        for frame, slot in places:
            if frame not in self._drawn:
                self._begin(frame)
            if not 0 <= slot < self.layout.tokens_per_frame:
                raise CacheOverflowError(f"slot {slot} of a frame of {self.layout.tokens_per_frame}")
        self.slots, self._own, self._across = places, None, [None, None]
        if self.fast:
            if self._numbers is None:
                self._numbers = _SlotIndices(self)
            self._numbers.seek(places)

    @property
    def fast(self) -> bool:
        """Whether the fast kernel attends for the present step: no two of its slots may be of one frame."""
        return self.fast_path_unsupported_reason is None and len({frame for frame, _ in self.slots}) == len(self.slots)

    def prepare(self) -> None:
        """First thing in a step, after `seek`: what follows from the slots' numbers on the device, without Python."""
        if self.fast and self._numbers is not None:
            self._numbers.prepare()

    @property
    def numbers(self) -> Tensor | None:
        """frame * N + slot of each slot of the step, on the device, [Q]; None where Python's `places` are used."""
        return self._numbers.now if self.fast and self._numbers is not None else None

    def position_rows(self) -> Tensor:
        """Rows of the step's slots in their position table, [1, Q]."""
        if self.fast and self._numbers is not None:
            return self._numbers.rows
        rows = [self._drawn[frame].rows[:, slot : slot + 1] for frame, slot in self.slots]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def attend(self, layer: int, channels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """For one channel or both q [B, heads, Q, d] of the step's slots and k_v [2, B, heads, Q, d], which are kept
        -> what the slots see, [B, Q, channels * h].
        """
        arenas = (self._spatial[layer], self._temporal[layer]) if self.use_temporal else (self._spatial[layer],)
        if self.fast and self._numbers is not None:
            asked = [Channel(q, k_v, arena.k_v) for (q, k_v), arena in zip(channels, arenas)]
            return decode_attention(asked, self._numbers.spans[layer % 2], self.text_bias).flatten(2)
        runs = (self._own_runs(), self._across_runs(layer % 2)) if self.use_temporal else (self._own_runs(),)
        done = [attend_step(q, append_runs(arena, run, k_v)) for (q, k_v), arena, run in zip(channels, arenas, runs)]
        return merge_heads(done[0] if len(done) == 1 else torch.cat(done, dim=1))

    def spans(self) -> list[int]:
        """Start and end of what each slot of the step sees: in its own frame, then across frames on even layers, then
        on odd ones (where only the backbone takes part, the first part again), 6 * Q numbers.
        """
        own = self._own_stretches()
        across = [self._across_stretches(parity) if self.use_temporal else own for parity in (0, 1)]
        return [place for stretches in (own, *across) for stretch in stretches for place in stretch]

    def buffers(self) -> KVBuffers:
        """All storage, for the compiled step."""
        if self._arenas is None:
            channels = (self._spatial, self._temporal) if self.use_temporal else (self._spatial,)
            self._arenas = KVBuffers([[arena.k_v for arena in layer] for layer in zip(*channels, strict=True)])
        return self._arenas

    def context(self, place: TokenSlot) -> list[list[KeyRange]]:
        """What a slot sees in each channel, on even layers and on odd ones."""
        frame, slot = place
        if frame not in self._drawn:
            self._begin(frame)
        drawn = self._drawn[frame]
        return [[drawn.own[slot], *(across[slot] for across in drawn.across[i : i + 1])] for i in (0, 1)]

    # -- private -----------------------------------------------------------------------------------------------

    def _begin(self, frame: int) -> None:
        if frame not in self.drawn:
            raise CacheOverflowError(f"frame {frame} has no place in this cache")
        start = self.drawn.index(frame) % self.parallel_frames * self._lane
        shelves = self._shelves if self.use_temporal else ()
        self._drawn[frame] = _WrittenSlots(self.layout, shelves, frame, start, self.text, self.like)

    def _own_runs(self) -> list[SlotRun]:
        if self._own is None:
            self._own = self._runs(self._own_stretches())
        return self._own

    def _across_runs(self, parity: int) -> list[SlotRun]:
        runs = self._across[parity]
        if runs is None:
            runs = self._across[parity] = self._runs(self._across_stretches(parity))
        return runs

    def _own_stretches(self) -> list[KeyRange]:
        return [self._drawn[frame].own[slot] for frame, slot in self.slots]

    def _across_stretches(self, parity: int) -> list[KeyRange]:
        return [self._drawn[frame].across[parity][slot] for frame, slot in self.slots]

    def _runs(self, stretches: list[KeyRange]) -> list[SlotRun]:
        """Neighbours together, with the part of the mask that is as long: text comes first in every stretch."""
        joined: list[tuple[KeyRange, int]] = []
        for start, end in stretches:
            if joined and joined[-1][0] == (start, end - 1):
                joined[-1] = (KeyRange(start, end), joined[-1][1] + 1)
            else:
                joined.append((KeyRange(start, end), 1))
        return [SlotRun(stretch, slots, self._masked(stretch.end - stretch.start, slots)) for stretch, slots in joined]

    def _masked(self, length: int, slots: int) -> Tensor | None:
        text = None if self._mask is None else self._mask[..., :length]
        if slots == 1:
            return text
        later = self.like.new_full((slots, length), float("-inf")).triu_(length - slots + 1)
        return later[None, None] if text is None else text + later


class _SlotIndices:
    """What every slot sees, on the device: a step's slots are found by their numbers there, and no number of a slot is
    part of the program, so that a captured step serves all slots.
    """

    def __init__(self, cache: KVCache) -> None:
        layout, like = cache.layout, cache.like
        self._size, channels = layout.tokens_per_frame, 2 if cache.use_temporal else 1
        slots = layout.frames * self._size
        seen = [[[KeyRange(0, 0)] * channels] * slots for _ in (0, 1)]  # of a given frame's slots nothing
        for frame in cache.drawn:
            for slot in range(self._size):
                for parity, stretches in enumerate(cache.context(TokenSlot(frame, slot))):
                    seen[parity][frame * self._size + slot] = stretches
        spans = torch.tensor(seen, dtype=torch.int32).transpose(1, 2).contiguous()  # [2, channels, F * N, 2]
        rows = torch.cat([torch.as_tensor(layout.frame_rows(frame)) for frame in range(layout.frames)])
        self._spans, self._rows = spans.to(like.device), rows.to(like.device)
        self._all = torch.arange(slots, device=like.device)
        self._at: dict[int, Tensor] = {}  # for each number of slots in a step the one place for their numbers
        self.spans: tuple[Tensor, ...] = ()  # on even and on odd layers, [channels, Q, 2]
        self.now = self.rows = self._all

    def seek(self, places: Sequence[TokenSlot]) -> None:
        numbers = [self._all.narrow(0, frame * self._size + slot, 1) for frame, slot in places]
        if len(places) not in self._at:
            self._at[len(places)] = torch.empty_like(self._all[: len(places)])
        self.now = torch.cat(numbers, out=self._at[len(places)])

    def prepare(self) -> None:
        self.spans = self._spans.index_select(2, self.now).unbind(0)
        self.rows = self._rows.index_select(0, self.now)[None]  # [1, Q]
