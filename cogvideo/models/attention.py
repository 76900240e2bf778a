"""The attention of the three networks: two channels that read the same LayerNorm, and their mix.

In: hidden states [B, S, h] of a layer, after LN1. Out: [B, S, h], before LN3. `token_layout.py` defines the
visibility. Here it becomes additive masks, and calls that skip most of the masked keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.config import ModelConfig
from cogvideo.models.sat_adapter import BaseMixin
from cogvideo.token_layout import Stage, TokenLayout
from kernels.dense_attention import dense_attention

INIT_STD = 0.02


def linear(layer: Any, x: Tensor) -> Tensor:
    """Apply a linear layer of the backbone, without the model-parallel overhead of sat's version.

    If its weights are quantized or offloaded, the layer's own `forward` is used.
    """
    weight: Tensor = layer.weight
    if not weight.is_floating_point() or weight.is_meta:
        product: Tensor = layer(x)
        return product
    bias: Tensor = layer.bias
    return F.linear(x, weight, bias)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split [B, S, 3h] into q, k, v, each [B, heads, S, d]: three contiguous blocks of h, as published."""
    batch, length, width = qkv.shape
    q, k, v = qkv.view(batch, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def merge_heads(x: Tensor) -> Tensor:
    """Merge the heads: [B, heads, S, d] -> [B, S, h]."""
    batch, heads, length, size = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * size)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + mask) v. The mask is additive and broadcast over heads."""
    return dense_attention(q, k, v, mask)


def to_additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a boolean mask to an additive one: 0 if True, else -inf."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def text_padding_mask(text_length: Tensor, slots: int) -> Tensor:
    """Return which of the left-padded text slots hold text, [B, slots] bool; `text_length` [B], each at least 1."""
    return torch.arange(slots, device=text_length.device) >= slots - text_length[:, None]


class AttentionPattern(Protocol):
    """The attention of one forward pass.

    `layer` counts from 0, `backbone` is the backbone's attention module, `own` holds the second attention's parameters.
    """

    def __call__(self, backbone: Any, own: AttentionPlus, layer: int, hidden: Tensor) -> Tensor: ...


class AttentionPlus(BaseMixin):
    """Parameters of the second attention of every layer, under their published names."""

    def __init__(self, config: ModelConfig, gated: bool) -> None:
        super().__init__()
        layers, hidden = config.layers, config.hidden
        self.heads = config.heads
        self.query_key_value = nn.ModuleList(_linear(hidden, 3 * hidden) for _ in range(layers))
        self.dense = nn.ModuleList(_linear(hidden, hidden) for _ in range(layers))
        if gated:
            self.attn_distribution = nn.ParameterList(nn.Parameter(torch.zeros(hidden)) for _ in range(layers))

    def reinit(self, parent_model: Any = None) -> None:
        """Initialize training: copy the weights of queries, keys and values from the backbone."""
        with torch.no_grad():
            for own, layer in zip(self.query_key_value, self.transformer.layers, strict=True):
                own.load_state_dict(layer.attention.query_key_value.state_dict())

    def attention_forward(
        self, hidden_states: Tensor, mask: Tensor, *, layer_id: Tensor, pattern: AttentionPattern, **_: Any
    ) -> Tensor:
        """Replace sat's attention (its hook). `mask` is not used."""
        layer = int(layer_id)
        return pattern(self.transformer.layers[layer].attention, self, layer, hidden_states)

    def mix(self, layer: int, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Compute s * spatial + (1 - s) * temporal, with s between 0 and 1 for each channel of the hidden state."""
        return torch.lerp(temporal, spatial, torch.sigmoid(self.attn_distribution[layer]).to(spatial.dtype))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=INIT_STD)
        nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class ImageAttention:
    """The backbone alone over text and one frame. Text attends to text, the frame to text and causally to itself."""

    text: int
    text_mask: Tensor  # [B, 1, 1, T]
    frame_mask: Tensor  # [B, 1, N, T + N]

    @classmethod
    def of(cls, layout: TokenLayout, text_length: Tensor, text: int, dtype: torch.dtype) -> ImageAttention:
        seen = text_padding_mask(text_length, text)
        own = torch.as_tensor(layout.spatial_mask(1, 0), device=seen.device)
        return cls(
            text,
            to_additive_mask(seen, dtype)[:, None, None],
            to_additive_mask(_add_text_mask(seen, own[None]), dtype)[:, None],
        )

    def __call__(self, backbone: Any, own: AttentionPlus, layer: int, hidden: Tensor) -> Tensor:
        q, k, v = split_heads(linear(backbone.query_key_value, hidden), own.heads)
        t = self.text
        text = attend(q[:, :, :t], k[:, :, :t], v[:, :, :t], self.text_mask)
        frame = attend(q[:, :, t:], k, v, self.frame_mask)
        return linear(backbone.dense, merge_heads(torch.cat((text, frame), dim=2)))


class KVWriter(Protocol):
    """Receiver of the keys and values of a pass, see `kv_cache.py`. All are [B, heads, T + F * N, d]."""

    def write_spatial(self, layer: int, k: Tensor, v: Tensor) -> None: ...

    def write_temporal(self, layer: int, k: Tensor, v: Tensor) -> None: ...


@dataclass(frozen=True)
class TextAttention:
    """The backbone alone over text alone: the prefill of the first frame."""

    text_mask: Tensor  # [B, 1, 1, T]
    keeper: KVWriter

    @classmethod
    def of(cls, seen: Tensor, dtype: torch.dtype, keeper: KVWriter) -> TextAttention:
        return cls(to_additive_mask(seen, dtype)[:, None, None], keeper)

    def __call__(self, backbone: Any, own: AttentionPlus, layer: int, hidden: Tensor) -> Tensor:
        q, k, v = split_heads(linear(backbone.query_key_value, hidden), own.heads)
        self.keeper.write_spatial(layer, k, v)
        return linear(backbone.dense, merge_heads(attend(q, k, v, self.text_mask)))


@dataclass(frozen=True)
class VideoAttention:
    """Both channels over text and whole frames in one pass, as in training.

    With a `keeper` it is also the prefill of the given frames. Only then may `boost`, the text attention bias, differ
    from 0. It is added to the spatial channel's scores of frame-to-text attention.
    """

    text: int
    frames: int
    text_mask: Tensor  # [B, 1, 1, T]
    spatial_mask: Tensor  # [B * F, 1, N, T + N]
    temporal: TemporalAttention
    keeper: KVWriter | None = None

    @classmethod
    def of(
        cls,
        layout: TokenLayout,
        stage: Stage,
        frames: tuple[int, ...],
        seen: Tensor,
        dtype: torch.dtype,
        keeper: KVWriter | None = None,
        boost: float = 0.0,
    ) -> VideoAttention:
        """Build the masks. `frames`: their numbers in time order; `seen` [B, T]: text slots that hold text."""
        text = seen.shape[1]
        own = torch.stack([torch.as_tensor(layout.spatial_mask(stage, f), device=seen.device) for f in frames])
        # batch-major: the frames of one sample are adjacent rows
        spatial = _add_text_mask(seen.repeat_interleave(len(frames), 0), own.repeat(len(seen), 1, 1))
        spatial_mask = to_additive_mask(spatial, dtype)[:, None]
        spatial_mask[..., :text] += boost
        return cls(
            text=text,
            frames=len(frames),
            text_mask=to_additive_mask(seen, dtype)[:, None, None],
            spatial_mask=spatial_mask,
            temporal=(CausalTemporalAttention if stage == 1 else WindowedTemporalAttention).of(
                layout, frames, seen, dtype
            ),
            keeper=keeper,
        )

    def __call__(self, backbone: Any, own: AttentionPlus, layer: int, hidden: Tensor) -> Tensor:
        spatial = linear(backbone.dense, merge_heads(self._spatial(backbone, own.heads, layer, hidden)))
        q, k, v = split_heads(own.query_key_value[layer](hidden), own.heads)
        if self.keeper is not None:
            self.keeper.write_temporal(layer, k, v)
        temporal = own.dense[layer](merge_heads(self.temporal(layer, q[:, :, self.text :], k, v)))
        mixed = own.mix(layer, spatial[:, self.text :], temporal)
        return torch.cat((spatial[:, : self.text], mixed), dim=1)

    def _spatial(self, backbone: Any, heads: int, layer: int, hidden: Tensor) -> Tensor:
        """Compute the spatial channel, [B, heads, S, d]. Frames become rows of the batch: none attends to another."""
        q, k, v = split_heads(linear(backbone.query_key_value, hidden), heads)
        if self.keeper is not None:
            self.keeper.write_spatial(layer, k, v)
        t = self.text
        text = attend(q[:, :, :t], k[:, :, :t], v[:, :, :t], self.text_mask)
        rows = attend(self._fold(q[:, :, t:]), self._prepend_text(k), self._prepend_text(v), self.spatial_mask)
        frames = rows.unflatten(0, (len(hidden), self.frames)).transpose(1, 2).flatten(2, 3)
        return torch.cat((text, frames), dim=2)

    def _fold(self, x: Tensor) -> Tensor:
        """Move frames into the batch: [B, heads, F * N, d] -> [B * F, heads, N, d]."""
        return x.unflatten(2, (self.frames, -1)).transpose(1, 2).flatten(0, 1)

    def _prepend_text(self, x: Tensor) -> Tensor:
        """Prepend the text to each frame: [B, heads, T + F * N, d] -> [B * F, heads, T + N, d]."""
        text = x[:, None, :, : self.text].expand(-1, self.frames, -1, -1, -1)
        frames = x[:, :, self.text :].unflatten(2, (self.frames, -1)).transpose(1, 2)
        return torch.cat((text, frames), dim=3).flatten(0, 1)


class TemporalAttention(Protocol):
    """The temporal channel of a whole video."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend: q [B, heads, F * N, d], k and v [B, heads, T + F * N, d] -> [B, heads, F * N, d]."""
        ...


@dataclass(frozen=True)
class CausalTemporalAttention:
    """Stage 1: each frame attends to text, all earlier frames, and causally to itself.

    One call for each frame skips the keys of later frames.
    """

    masks: tuple[Tensor, ...]  # frame i: [B, 1, N, T + (i + 1) * N]

    @classmethod
    def of(
        cls, layout: TokenLayout, frames: tuple[int, ...], seen: Tensor, dtype: torch.dtype
    ) -> CausalTemporalAttention:
        own = torch.as_tensor(layout.spatial_mask(1, 0), device=seen.device)
        earlier = [own.new_ones(len(own), i * len(own)) for i in range(len(frames))]
        return cls(
            tuple(
                to_additive_mask(_add_text_mask(seen, torch.cat((past, own), 1)[None]), dtype)[:, None]
                for past in earlier
            )
        )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        frames = q.chunk(len(self.masks), dim=2)
        seen = [mask.shape[-1] for mask in self.masks]
        return torch.cat(
            [
                attend(frame, k[:, :, :end], v[:, :, :end], mask)
                for frame, end, mask in zip(frames, seen, self.masks, strict=True)
            ],
            dim=2,
        )


@dataclass(frozen=True)
class WindowedTemporalAttention:
    """Stage 2: windows become rows of the batch. Odd layers have shifted windows."""

    text: int
    orders: tuple[Tensor, Tensor]  # even, odd layers: slot numbers, windows first, [W * F * w * w]
    reverts: tuple[Tensor, Tensor]  # their inverses
    masks: tuple[Tensor, Tensor]  # [B * W, 1, F * w * w, T + F * w * w]

    @classmethod
    def of(
        cls, layout: TokenLayout, frames: tuple[int, ...], seen: Tensor, dtype: torch.dtype
    ) -> WindowedTemporalAttention:
        """Return the orders and masks of both shift parities. `seen`: text padding mask, [B, T], True for text."""
        frame = torch.arange(len(frames), device=seen.device)[:, None] * layout.tokens_per_frame
        orders, masks = [], []
        for parity in (0, 1):
            cells = torch.as_tensor(layout.windows(layout.shift(parity)), device=seen.device)  # [W, w * w]
            near = torch.as_tensor(layout.window_mask(layout.shift(parity), frames), device=seen.device)
            orders.append((frame + cells[:, None]).flatten())
            rows = _add_text_mask(seen.repeat_interleave(len(near), 0), near.repeat(len(seen), 1, 1))
            masks.append(to_additive_mask(rows, dtype)[:, None])
        even, odd = orders
        return cls(seen.shape[1], (even, odd), (even.argsort(), odd.argsort()), (masks[0], masks[1]))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parity, batch = layer % 2, len(q)
        order, mask = self.orders[parity], self.masks[parity]
        windows = len(mask) // batch
        q = q[:, :, order].unflatten(2, (windows, -1)).transpose(1, 2).flatten(0, 1)
        out = attend(q, self._prepend_text(k, order, windows), self._prepend_text(v, order, windows), mask)
        out = out.unflatten(0, (batch, windows)).transpose(1, 2).flatten(2, 3)  # [B, heads, W * F * w * w, d]
        return out[:, :, self.reverts[parity]]

    def _prepend_text(self, x: Tensor, order: Tensor, windows: int) -> Tensor:
        """Prepend the text to each window: [B, heads, T + F * N, d] -> [B * W, heads, T + F * w * w, d]."""
        text = x[:, None, :, : self.text].expand(-1, windows, -1, -1, -1)
        inside = x[:, :, order + self.text].unflatten(2, (windows, -1)).transpose(1, 2)
        return torch.cat((text, inside), dim=3).flatten(0, 1)


class AttentionContext(NamedTuple):
    """Keys and values [B, heads, keys, d] that slots of a step attend to, an additive mask, and the number of slots."""

    k: Tensor
    v: Tensor
    mask: Tensor | None
    slots: int = 1


class StepCache(Protocol):
    """The part of the KV cache that a decoding step uses, see `kv_cache.py`."""

    def attend(self, layer: int, channels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Write k_v to the cache, then attend with q; return [B, Q, channels * h].

        `channels`, one or two: q [B, heads, Q, d] of the step's Q slots and k_v [2, B, heads, Q, d].
        """
        ...


@dataclass(frozen=True)
class DecodeStepAttention:
    """The attention of a decoding step: write the keys and values of its slots to the cache, then attend to it.

    `both`: whether the temporal channel takes part. The first frame uses the backbone alone.
    """

    shelves: StepCache
    both: bool

    def __call__(self, backbone: Any, own: AttentionPlus, layer: int, hidden: Tensor) -> Tensor:
        channels = [self._split(linear(backbone.query_key_value, hidden), own.heads)]
        if self.both:
            channels.append(self._split(linear(own.query_key_value[layer], hidden), own.heads))
        attended = self.shelves.attend(layer, channels)  # [B, Q, channels * h]
        width = hidden.shape[-1]
        spatial = linear(backbone.dense, attended[..., :width])
        if not self.both:
            return spatial
        return own.mix(layer, spatial, linear(own.dense[layer], attended[..., width:]))

    @staticmethod
    def _split(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """Split [B, Q, 3h] into q [B, heads, Q, d] and k_v [2, B, heads, Q, d]."""
        batch, slots, width = qkv.shape
        parts = qkv.view(batch, slots, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1:]


def attend_step(q: Tensor, seen: list[AttentionContext]) -> Tensor:
    """Attend with q [B, heads, Q, d] to `seen`, the contexts of its slots in their order -> [B, heads, Q, d]."""
    if len(seen) == 1:
        return attend(q, seen[0].k, seen[0].v, seen[0].mask)
    parts = q.split([each.slots for each in seen], dim=2)
    return torch.cat([attend(part, each.k, each.v, each.mask) for part, each in zip(parts, seen)], dim=2)


def _add_text_mask(text: Tensor, own: Tensor) -> Tensor:
    """Prepend the text's mask to `own`: text [B, T], own [B or 1, Q, K] -> [B, Q, T + K], all bool."""
    batch, queries = len(text), own.shape[1]
    return torch.cat((text[:, None].expand(-1, queries, -1), own.expand(batch, -1, -1)), dim=2)
