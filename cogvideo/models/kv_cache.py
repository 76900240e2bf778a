"""KV cache: the slots that a step writes, and the keys and values that it attends to.

In: keys and values of a pass (`write_*`) or of the slots of a step. Out: the attention of those slots.
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
    """A slot of a generated frame."""

    frame: int
    """Time-order number within the sequence."""
    slot: int


def fast_path_unsupported_reason(config: ModelConfig, like: Tensor, int8: bool) -> str | None:
    """Return why the fast kernel (and with it captured steps) does not support such a cache. None if it does."""
    probe = like.new_empty(1, 1, 1, config.head_size)
    return "keys and values are in 8 bits" if int8 else unsupported_reason([Channel(probe, probe, probe)])


class _WrittenSlots:
    """The slots of a generated frame: their position rows, and the keys that they attend to."""

    def __init__(
        self,
        layout: TokenLayout,
        key_layouts: Sequence[TemporalKeyLayout],
        frame: int,
        start: int,
        text: int,
        like: Tensor,
    ) -> None:
        """Look up rows and key ranges. `start`: first key of the frame's section (text, own slots) in the channel."""
        self.rows = torch.as_tensor(layout.frame_rows(frame), device=like.device)[None]  # [1, N]
        self.own = [KeyRange(start, start + text + slot + 1) for slot in range(layout.tokens_per_frame)]
        self.across = [keys.key_ranges(frame) for keys in key_layouts]


class CacheKey(NamedTuple):
    """The properties of a cache on which its storage and captured steps depend."""

    stage: Stage
    rows: int
    text: int
    """Slots of the left-padded text."""
    given: tuple[int, ...]
    """Frames that `VideoLM.prefill` reads."""
    use_temporal: bool
    """Whether the temporal channel takes part; the first frame is generated without it."""
    text_attention_bias: float
    """Added to the scores of frame-to-text attention."""
    parallel_frames: int = 1
    """Frames that are decoded at the same time."""
    int8: bool = False
    """See `Int8KVBuffer`."""


class KVCache:
    """The KV cache of one batch of rows during decoding. Rows may have texts of different lengths.

    `like`: a tensor of the required device and type. Raises ValueError if the text is too long.
    """

    def __init__(self, layout: TokenLayout, key: CacheKey, like: Tensor) -> None:
        config = layout.config
        if key.text > layout.image_start:
            raise ValueError(
                f"{key.text} text slots run into the first frame's positions, which start at {layout.image_start}"
            )
        self.layout, self.key, self.like = layout, key, like
        self.stage, self.rows, self.text, self.num_given = key.stage, key.rows, key.text, key.given
        self.use_temporal, self.text_attention_bias = key.use_temporal, key.text_attention_bias
        self.parallel_frames = key.parallel_frames
        sizes = (key.rows, config.heads)
        self._frame_capacity = key.text + layout.tokens_per_frame
        buffer_type = Int8KVBuffer if key.int8 else KVBuffer
        self._spatial = [
            buffer_type(*sizes, key.parallel_frames * self._frame_capacity, config.head_size, like)
            for _ in range(config.layers)
        ]
        self._key_layouts = [layout.temporal_keys(key.stage, parity, key.text) for parity in (0, 1)]
        self._temporal = [
            buffer_type(*sizes, self._key_layouts[layer % 2].capacity, config.head_size, like)
            for layer in range(config.layers if key.use_temporal else 0)
        ]
        self.text_bias: Tensor | None = None  # [B, T], added to the scores of frame-to-text attention
        self._mask: Tensor | None = None
        self._frame_slots: dict[int, _WrittenSlots] = {}
        self.slots: Sequence[TokenSlot] = ()  # of the current step
        # What its slots attend to: in their own frame; across frames on even and on odd layers.
        self._own: list[SlotRun] | None = None
        self._across: list[list[SlotRun] | None] = [None, None]
        self._native_buffers: KVBuffers | None = None
        self.graphs: dict[object, object] = {}
        """Steps that `VideoLM` has captured on this storage."""
        # Frames to generate, in decoding order.
        self.drawn = tuple(f for f in range(layout.frames) if f not in key.given) if key.use_temporal else (0,)
        self._indices: _SlotIndices | None = None
        self.fast_path_unsupported_reason = fast_path_unsupported_reason(config, like, key.int8)
        """Why the fast kernel is not used. None: it is used."""

    # -- prefill: the text and the given frames -------------------------------------------------------------------

    def set_text(self, seen: Tensor) -> None:
        """Set which text slots hold text, seen [B, T]. The tensor is reused, since captured steps read its address."""
        self._mask, bias = None, to_additive_mask(seen, self.like.dtype) + self.text_attention_bias
        if self.fast_path_unsupported_reason is None and self.text_bias is not None:
            self.text_bias.copy_(bias)
        elif self.fast_path_unsupported_reason is None or self.text_attention_bias or not bool(seen.all()):
            self.text_bias = bias
        else:
            self.text_bias = None
        if self.text_bias is not None:
            widest = self.text + self.layout.frames * self.layout.tokens_per_frame
            self._mask = self.like.new_zeros(self.rows, 1, 1, widest)
            self._mask[:, 0, 0, : self.text] = self.text_bias

    def write_spatial(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write the text's part of keys and values [B, heads, T + F * N, d].

        In the spatial channel, a generated frame attends to no other frame.
        """
        tokens, slots = self.spatial_slots().to(k.device)
        self._spatial[layer].write(slots, torch.stack((k, v))[:, :, :, tokens])

    def write_temporal(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Write the keys and values of text and given frames, [B, heads, T + F * N, d]."""
        tokens, slots = self.temporal_slots(layer % 2).to(k.device)
        self._temporal[layer].write(slots, torch.stack((k, v))[:, :, :, tokens])

    def spatial_slots(self) -> Tensor:
        """Return the prefill tokens that the spatial channel stores, and their cache indices, [2, K].

        Each parallel frame has a copy of the text.
        """
        tokens = torch.arange(self.text).expand(self.parallel_frames, -1)
        starts = torch.arange(self.parallel_frames)[:, None] * self._frame_capacity
        return torch.stack((tokens, tokens + starts)).flatten(1)

    def temporal_slots(self, parity: int) -> Tensor:
        """Return the prefill tokens that the temporal channel stores, and their cache indices, [2, K].

        `parity`: of the layer. Each region has a copy of the text, then its cells of all frames.
        """
        keys, size = self._key_layouts[parity], self.layout.tokens_per_frame
        texts = torch.as_tensor(keys.text_slots())  # [regions, T]
        frames = [torch.as_tensor(keys.frame_slots(frame)) for frame in self.num_given]
        tokens = [torch.arange(self.text).repeat(len(texts)), self.text + torch.arange(len(frames) * size)]
        return torch.stack((torch.cat(tokens), torch.cat([texts.flatten(), *frames])))

    @property
    def nbytes(self) -> int:
        """Bytes of the storage."""
        return sum(buffer.nbytes for buffer in (*self._spatial, *self._temporal))

    def mark_all_written(self) -> None:
        """Fill the cache with zeros, as if all frames had been decoded: for benchmarks of later steps."""
        for buffer in (*self._spatial, *self._temporal):
            buffer.k_v.zero_()

    # -- decoding ----------------------------------------------------------------------------------------------

    def select_slots(self, slots: Sequence[TokenSlot]) -> None:
        """Select the slots of the next step. Slots of a frame are in ascending order. Raises CacheOverflowError."""
        for frame, slot in slots:
            if frame not in self._frame_slots:
                self._begin(frame)
            if not 0 <= slot < self.layout.tokens_per_frame:
                raise CacheOverflowError(f"slot {slot} of a frame of {self.layout.tokens_per_frame}")
        self.slots, self._own, self._across = slots, None, [None, None]
        if self.fast:
            if self._indices is None:
                self._indices = _SlotIndices(self)
            self._indices.select(slots)

    @property
    def fast(self) -> bool:
        """Whether the fast kernel computes the current step. It supports one slot of each frame."""
        return self.fast_path_unsupported_reason is None and len({frame for frame, _ in self.slots}) == len(self.slots)

    def prepare(self) -> None:
        """Look up key ranges and position rows on the device. To be called first in a step, after `select_slots`."""
        if self.fast and self._indices is not None:
            self._indices.prepare()

    @property
    def numbers(self) -> Tensor | None:
        """frame * N + slot of each slot of the step, on the device, [Q]. None if the step uses `slots` instead."""
        return self._indices.now if self.fast and self._indices is not None else None

    def position_rows(self) -> Tensor:
        """Return the rows of the step's slots in their position table, [1, Q]."""
        if self.fast and self._indices is not None:
            return self._indices.rows
        rows = [self._frame_slots[frame].rows[:, slot : slot + 1] for frame, slot in self.slots]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)

    def attend(self, layer: int, channels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Write k_v of each channel, then attend with q; return [B, Q, channels * h].

        `channels`, one or two: q [B, heads, Q, d] of the step's slots and k_v [2, B, heads, Q, d].
        """
        buffers = (self._spatial[layer], self._temporal[layer]) if self.use_temporal else (self._spatial[layer],)
        if self.fast and self._indices is not None:
            inputs = [Channel(q, k_v, buffer.k_v) for (q, k_v), buffer in zip(channels, buffers)]
            return decode_attention(inputs, self._indices.spans[layer % 2], self.text_bias).flatten(2)
        runs = (self._own_runs(), self._across_runs(layer % 2)) if self.use_temporal else (self._own_runs(),)
        outputs = [
            attend_step(q, append_runs(buffer, run, k_v)) for (q, k_v), buffer, run in zip(channels, buffers, runs)
        ]
        return merge_heads(outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1))

    def spans(self) -> list[int]:
        """Return start and end of the key range of each slot of the step, 6 * Q numbers.

        First in its own frame, then across frames on even layers, then on odd layers. Without the temporal channel all
        three parts are the first one.
        """
        own = self._own_ranges()
        across = [self._across_ranges(parity) if self.use_temporal else own for parity in (0, 1)]
        return [bound for ranges in (own, *across) for key_range in ranges for bound in key_range]

    def buffers(self) -> KVBuffers:
        """Return all storage, for the compiled step."""
        if self._native_buffers is None:
            channels = (self._spatial, self._temporal) if self.use_temporal else (self._spatial,)
            self._native_buffers = KVBuffers(
                [[buffer.k_v for buffer in layer] for layer in zip(*channels, strict=True)]
            )
        return self._native_buffers

    def context(self, token_slot: TokenSlot) -> list[list[KeyRange]]:
        """Return the key range of a slot in each channel, for even and for odd layers."""
        frame, slot = token_slot
        if frame not in self._frame_slots:
            self._begin(frame)
        written = self._frame_slots[frame]
        return [[written.own[slot], *(across[slot] for across in written.across[i : i + 1])] for i in (0, 1)]

    # -- private -----------------------------------------------------------------------------------------------

    def _begin(self, frame: int) -> None:
        if frame not in self.drawn:
            raise CacheOverflowError(f"frame {frame} is not one of the generated frames {self.drawn} of this cache")
        start = self.drawn.index(frame) % self.parallel_frames * self._frame_capacity
        key_layouts = self._key_layouts if self.use_temporal else ()
        self._frame_slots[frame] = _WrittenSlots(self.layout, key_layouts, frame, start, self.text, self.like)

    def _own_runs(self) -> list[SlotRun]:
        if self._own is None:
            self._own = self._runs(self._own_ranges())
        return self._own

    def _across_runs(self, parity: int) -> list[SlotRun]:
        runs = self._across[parity]
        if runs is None:
            runs = self._across[parity] = self._runs(self._across_ranges(parity))
        return runs

    def _own_ranges(self) -> list[KeyRange]:
        return [self._frame_slots[frame].own[slot] for frame, slot in self.slots]

    def _across_ranges(self, parity: int) -> list[KeyRange]:
        return [self._frame_slots[frame].across[parity][slot] for frame, slot in self.slots]

    def _runs(self, ranges: list[KeyRange]) -> list[SlotRun]:
        """Join adjacent key ranges into runs, each with its part of the mask: every range begins with the text."""
        joined: list[tuple[KeyRange, int]] = []
        for start, end in ranges:
            if joined and joined[-1][0] == (start, end - 1):
                joined[-1] = (KeyRange(start, end), joined[-1][1] + 1)
            else:
                joined.append((KeyRange(start, end), 1))
        return [SlotRun(keys, slots, self._run_mask(keys.end - keys.start, slots)) for keys, slots in joined]

    def _run_mask(self, length: int, slots: int) -> Tensor | None:
        text = None if self._mask is None else self._mask[..., :length]
        if slots == 1:
            return text
        later = self.like.new_full((slots, length), float("-inf")).triu_(length - slots + 1)
        return later[None, None] if text is None else text + later


class _SlotIndices:
    """The key ranges and position rows of all slots, on the device.

    A step looks them up by slot numbers that are on the device as well. No slot number is part of the program, so that
    one captured step serves all slots.
    """

    def __init__(self, cache: KVCache) -> None:
        layout, like = cache.layout, cache.like
        self._size, channels = layout.tokens_per_frame, 2 if cache.use_temporal else 1
        slots = layout.frames * self._size
        seen = [[[KeyRange(0, 0)] * channels] * slots for _ in (0, 1)]  # slots of given frames: none
        for frame in cache.drawn:
            for slot in range(self._size):
                for parity, ranges in enumerate(cache.context(TokenSlot(frame, slot))):
                    seen[parity][frame * self._size + slot] = ranges
        spans = torch.tensor(seen, dtype=torch.int32).transpose(1, 2).contiguous()  # [2, channels, F * N, 2]
        rows = torch.cat([torch.as_tensor(layout.frame_rows(frame)) for frame in range(layout.frames)])
        self._spans, self._rows = spans.to(like.device), rows.to(like.device)
        self._all = torch.arange(slots, device=like.device)
        self._storage: dict[int, Tensor] = {}  # number of slots in a step -> the fixed tensor of their numbers
        self.spans: tuple[Tensor, ...] = ()  # on even and on odd layers, [channels, Q, 2]
        self.now = self.rows = self._all

    def select(self, slots: Sequence[TokenSlot]) -> None:
        """Write the numbers of `slots` to the device."""
        numbers = [self._all.narrow(0, frame * self._size + slot, 1) for frame, slot in slots]
        if len(slots) not in self._storage:
            self._storage[len(slots)] = torch.empty_like(self._all[: len(slots)])
        self.now = torch.cat(numbers, out=self._storage[len(slots)])

    def prepare(self) -> None:
        """Look up key ranges and position rows of the selected slots."""
        self.spans = self._spans.index_select(2, self.now).unbind(0)
        self.rows = self._rows.index_select(0, self.now)[None]  # [1, Q]
