"""The attention of the three networks: two channels that read the same LayerNorm, and how they are mixed.

In: hidden states [B, S, h] of a layer, after LN1. Out: [B, S, h], before LN3. Who sees whom comes from
`token_layout.py`; here it becomes additive masks, and calls that skip most of what the masks would hide.
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
    """A linear layer of the backbone without the work that sat's version does for model parallelism.

    A layer whose weights are kept in fewer bits, or elsewhere, multiplies by itself.
    """
    weight: Tensor = layer.weight
    if not weight.is_floating_point() or weight.is_meta:
        product: Tensor = layer(x)
        return product
    bias: Tensor = layer.bias
    return F.linear(x, weight, bias)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, S, 3h] -> q, k, v, each [B, heads, S, d]: three contiguous blocks of h, as published."""
    batch, length, width = qkv.shape
    q, k, v = qkv.view(batch, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, S, d] -> [B, S, h]."""
    batch, heads, length, size = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * size)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v; mask additive, broadcast over heads."""
    return dense_attention(q, k, v, mask)


def to_additive_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Boolean "may be seen" -> 0 or -inf."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def text_padding_mask(text_length: Tensor, slots: int) -> Tensor:
    """Which of the left-padded text slots are real, [B, slots] bool; `text_length` [B], each at least 1."""
    return torch.arange(slots, device=text_length.device) >= slots - text_length[:, None]


class AttentionPattern(Protocol):
    """How one forward pass attends. `layer` counts from 0, `backbone` is its attention, `own` the second one's."""

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
        """Start of training: queries, keys and values as in the backbone."""
        with torch.no_grad():
            for own, layer in zip(self.query_key_value, self.transformer.layers, strict=True):
                own.load_state_dict(layer.attention.query_key_value.state_dict())

    def attention_forward(
        self, hidden_states: Tensor, mask: Tensor, *, layer_id: Tensor, pattern: AttentionPattern, **_: Any
    ) -> Tensor:
        """sat's hook in place of its own attention; `mask` is not used."""
        layer = int(layer_id)
        return pattern(self.transformer.layers[layer].attention, self, layer, hidden_states)

    def mix(self, layer: int, spatial: Tensor, temporal: Tensor) -> Tensor:
        """s * spatial + (1 - s) * temporal, s between 0 and 1 for each channel of the hidden state."""
        return torch.lerp(temporal, spatial, torch.sigmoid(self.attn_distribution[layer]).to(spatial.dtype))


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    if not layer.weight.is_meta:
        nn.init.normal_(layer.weight, std=INIT_STD)
        nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class ImageAttention:
    """The backbone alone over text and one frame: text sees text, the frame sees text and itself, causally."""

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
            to_additive_mask(_beside_text(seen, own[None]), dtype)[:, None],
        )

    def __call__(self, backbone: Any, own: AttentionPlus, layer: int, hidden: Tensor) -> Tensor:
        q, k, v = split_heads(linear(backbone.query_key_value, hidden), own.heads)
        t = self.text
        text = attend(q[:, :, :t], k[:, :, :t], v[:, :, :t], self.text_mask)
        frame = attend(q[:, :, t:], k, v, self.frame_mask)
        return linear(backbone.dense, merge_heads(torch.cat((text, frame), dim=2)))


class KVWriter(Protocol):
    """Takes the keys and values of a pass for later; see `kv_cache.py`. All [B, heads, T + F * N, d]."""

    def write_spatial(self, layer: int, k: Tensor, v: Tensor) -> None: ...

    def write_temporal(self, layer: int, k: Tensor, v: Tensor) -> None: ...


@dataclass(frozen=True)
class TextAttention:
    """The backbone alone over text alone: what the first frame is drawn after."""

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
    """Both channels over text and whole frames in one pass: the form that is trained.

    With a `keeper` it is also the pass that reads the given frames before others are drawn; only then `boost` may
    be other than 0: it is added to the spatial channel's scores of frame and text.
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
        """`frames`: their numbers in time order; `seen` [B, T]: real text slots."""
        text = seen.shape[1]
        own = torch.stack([torch.as_tensor(layout.spatial_mask(stage, f), device=seen.device) for f in frames])
        # batch-major: rows of one sample's frames follow each other
        spatial = _beside_text(seen.repeat_interleave(len(frames), 0), own.repeat(len(seen), 1, 1))
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
        """Frames become rows of the batch, so that no frame meets another: -> [B, heads, S, d]."""
        q, k, v = split_heads(linear(backbone.query_key_value, hidden), heads)
        if self.keeper is not None:
            self.keeper.write_spatial(layer, k, v)
        t = self.text
        text = attend(q[:, :, :t], k[:, :, :t], v[:, :, :t], self.text_mask)
        rows = attend(self._fold(q[:, :, t:]), self._beside(k), self._beside(v), self.spatial_mask)
        frames = rows.unflatten(0, (len(hidden), self.frames)).transpose(1, 2).flatten(2, 3)
        return torch.cat((text, frames), dim=2)

    def _fold(self, x: Tensor) -> Tensor:
        """[B, heads, F * N, d] -> [B * F, heads, N, d]."""
        return x.unflatten(2, (self.frames, -1)).transpose(1, 2).flatten(0, 1)

    def _beside(self, x: Tensor) -> Tensor:
        """[B, heads, T + F * N, d] -> [B * F, heads, T + N, d]: the text in front of each frame."""
        text = x[:, None, :, : self.text].expand(-1, self.frames, -1, -1, -1)
        frames = x[:, :, self.text :].unflatten(2, (self.frames, -1)).transpose(1, 2)
        return torch.cat((text, frames), dim=3).flatten(0, 1)


class TemporalAttention(Protocol):
    """The second channel of a whole clip."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, heads, F * N, d], k and v [B, heads, T + F * N, d] -> [B, heads, F * N, d]."""
        ...


@dataclass(frozen=True)
class CausalTemporalAttention:
    """Stage 1: each frame sees text, all earlier frames and itself causally. One call a frame: no later keys."""

    masks: tuple[Tensor, ...]  # frame i: [B, 1, N, T + (i + 1) * N]

    @classmethod
    def of(
        cls, layout: TokenLayout, frames: tuple[int, ...], seen: Tensor, dtype: torch.dtype
    ) -> CausalTemporalAttention:
        own = torch.as_tensor(layout.spatial_mask(1, 0), device=seen.device)
        earlier = [own.new_ones(len(own), i * len(own)) for i in range(len(frames))]
        return cls(
            tuple(
                to_additive_mask(_beside_text(seen, torch.cat((past, own), 1)[None]), dtype)[:, None]
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
    """Stage 2: windows become rows of the batch; odd layers have their own windows."""

    text: int
    orders: tuple[Tensor, Tensor]  # even, odd layers: slot numbers, windows first, [W * F * w * w]
    reverts: tuple[Tensor, Tensor]  # their inverses
    masks: tuple[Tensor, Tensor]  # [B * W, 1, F * w * w, T + F * w * w]

    @classmethod
    def of(
        cls, layout: TokenLayout, frames: tuple[int, ...], seen: Tensor, dtype: torch.dtype
    ) -> WindowedTemporalAttention:
        frame = torch.arange(len(frames), device=seen.device)[:, None] * layout.tokens_per_frame
        orders, masks = [], []
        for parity in (0, 1):
            cells = torch.as_tensor(layout.windows(layout.shift(parity)), device=seen.device)  # [W, w * w]
            near = torch.as_tensor(layout.window_mask(layout.shift(parity), frames), device=seen.device)
            orders.append((frame + cells[:, None]).flatten())
            rows = _beside_text(seen.repeat_interleave(len(near), 0), near.repeat(len(seen), 1, 1))
            masks.append(to_additive_mask(rows, dtype)[:, None])
        even, odd = orders
        return cls(seen.shape[1], (even, odd), (even.argsort(), odd.argsort()), (masks[0], masks[1]))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parity, batch = layer % 2, len(q)
        order, mask = self.orders[parity], self.masks[parity]
        windows = len(mask) // batch
        q = q[:, :, order].unflatten(2, (windows, -1)).transpose(1, 2).flatten(0, 1)
        out = attend(q, self._beside(k, order, windows), self._beside(v, order, windows), mask)
        out = out.unflatten(0, (batch, windows)).transpose(1, 2).flatten(2, 3)  # [B, heads, W * F * w * w, d]
        return out[:, :, self.reverts[parity]]

    def _beside(self, x: Tensor, order: Tensor, windows: int) -> Tensor:
        """[B, heads, T + F * N, d] -> [B * W, heads, T + F * w * w, d]: the text in front of each window."""
        text = x[:, None, :, : self.text].expand(-1, windows, -1, -1, -1)
        inside = x[:, :, order + self.text].unflatten(2, (windows, -1)).transpose(1, 2)
        return torch.cat((text, inside), dim=3).flatten(0, 1)


class AttentionContext(NamedTuple):
    """What slots being drawn see: keys and values [B, heads, seen, d], an additive mask, and how many slots it is."""

    k: Tensor
    v: Tensor
    mask: Tensor | None
    slots: int = 1


class StepCache(Protocol):
    """The cache as a step sees it; see `kv_cache.py`."""

    def attend(self, layer: int, channels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """For one channel or both q [B, heads, Q, d] of the step's Q slots and k_v [2, B, heads, Q, d], which are kept
        -> what the slots see, [B, Q, channels * h].
        """
        ...


@dataclass(frozen=True)
class DecodeStepAttention:
    """One slot of each frame being drawn: its keys and values join the cache, then it attends to what it may see.

    `both`: whether the temporal channel takes part; the first frame is drawn by the backbone alone.
    """

    shelves: StepCache
    both: bool

    def __call__(self, backbone: Any, own: AttentionPlus, layer: int, hidden: Tensor) -> Tensor:
        channels = [self._split(linear(backbone.query_key_value, hidden), own.heads)]
        if self.both:
            channels.append(self._split(linear(own.query_key_value[layer], hidden), own.heads))
        seen = self.shelves.attend(layer, channels)  # [B, Q, channels * h]
        width = hidden.shape[-1]
        spatial = linear(backbone.dense, seen[..., :width])
        if not self.both:
            return spatial
        return own.mix(layer, spatial, linear(own.dense[layer], seen[..., width:]))

    @staticmethod
    def _split(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        """[B, Q, 3h] -> q [B, heads, Q, d], k and v [2, B, heads, Q, d]."""
        batch, slots, width = qkv.shape
        parts = qkv.view(batch, slots, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
        return parts[0], parts[1:]


def attend_step(q: Tensor, seen: list[AttentionContext]) -> Tensor:
    """q [B, heads, Q, d] and what its slots see, in their order -> [B, heads, Q, d]."""
    if len(seen) == 1:
        return attend(q, seen[0].k, seen[0].v, seen[0].mask)
    parts = q.split([each.slots for each in seen], dim=2)
    return torch.cat([attend(part, each.k, each.v, each.mask) for part, each in zip(parts, seen)], dim=2)


def _beside_text(text: Tensor, own: Tensor) -> Tensor:
    """text [B, T], own [B or 1, Q, K] -> [B, Q, T + K], all bool."""
    batch, queries = len(text), own.shape[1]
    return torch.cat((text[:, None].expand(-1, queries, -1), own.expand(batch, -1, -1)), dim=2)
