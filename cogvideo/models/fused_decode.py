"""A decoding step with fewer and larger matrix products: concatenated weights, built once from a `VideoLM`.

In: the inputs of the slots of a step. Out: their hidden states after all layers and the final LayerNorm, and logits.
`VideoLM` itself remains the reference and the form for training. The fused form is a copy, which requires memory. It
is used for small networks on a CPU, and for large ones on a GPU with enough memory. It exists in PyTorch
(`TorchDecoder`), and in C (`NativeDecoder`) on CPUs with a compiler. Both have the same results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.models.attention import AttentionPlus
from cogvideo.models.base import text_positions
from cogvideo.models.kv_cache import KVCache
from cogvideo.token_layout import TokenLayout, Visibility
from kernels import cpu_decode, cpu_prefill
from kernels.cpu_decode import Affine, LayerWeights, Precision
from kernels.cpu_prefill import PrefillPlan, QueryGroup
from kernels.reference import EPSILON
from kernels.sandwich_norm import sandwich_norm

LARGEST = 2**28
"""Maximum numbers in the copy on a CPU. Beyond it, memory matters more than the time of a step."""

ROOM = 3
"""Free GPU memory that fusing requires once the networks are loaded, as a multiple of both stages' copies."""


def should_fuse(config: ModelConfig, device: torch.device) -> bool:
    """Return whether networks of this size, which stay on this device, should be fused after loading."""
    if device.type == "cuda":
        copies = 2 * config.layers * 8 * config.hidden**2 * 2  # fp16; weights that are not rearranged are shared
        return bool(torch.cuda.mem_get_info(device)[0] >= ROOM * copies)
    numbers = config.layers * 16 * config.hidden**2 + config.image_tokens * config.hidden
    return device.type == "cpu" and numbers <= LARGEST


class FusedDecoder(Protocol):
    """The layers of stage 1 or 2 in fused form. Later changes of the network's weights have no effect."""

    def prefill(self, cache: KVCache, text: Tensor, text_length: Tensor, slots: Tensor) -> bool:
        """Read text [B, T] and slots [B, S] of given frames into `cache`. Return False if this is not supported."""
        ...

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Compute the hidden states [B, Q, h] of the selected slots of `cache`, whose inputs are ids [B, Q]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute fp32 logits [B, Q, image_tokens] from [B, Q, h]."""
        ...


@torch.no_grad()
def fuse(
    layout: TokenLayout,
    transformer: Any,
    own: AttentionPlus,
    positions: Tensor,
    head: Tensor,
    precision: Precision,
    compiled: bool,
    threads: int,
) -> FusedDecoder:
    """Build the fused form of a network: in C if `compiled` and supported, else in PyTorch.

    `positions`: the extra position table. `head`: see `TokenModel`. `precision` and `threads` apply to the C form
    only.
    """
    in_c = compiled and cpu_decode.unsupported_reason(transformer.word_embeddings.weight) is None
    weights = FusedWeights(layout, transformer, own, positions, head, folded=not in_c)
    return NativeDecoder(weights, precision, threads) if in_c else TorchDecoder(weights)


class FusedWeights:
    """The weights of both forms.

    `folded`: the gate is multiplied into one output projection for both channels, which loses precision in low-bit
    formats. Otherwise it stays separate.
    """

    def __init__(
        self,
        layout: TokenLayout,
        transformer: Any,
        own: AttentionPlus,
        positions: Tensor,
        head: Tensor,
        folded: bool = True,
    ) -> None:
        self.heads, self.slots = own.heads, layout.tokens_per_frame
        self.words = transformer.word_embeddings.weight.detach()
        self.head = head.detach()
        self.final = _affine(transformer.final_layernorm)
        self.backbone = [
            _layer(layer, _affine(layer.attention.query_key_value), [_affine(layer.attention.dense)])
            for layer in transformer.layers
        ]
        join = _fold if folded else _concatenate
        self.both = [_layer(layer, *join(layer.attention, own, i)) for i, layer in enumerate(transformer.layers)]
        tables = [transformer.position_embeddings.weight, *[positions] * (layout.frames - 1)]
        rows = [torch.as_tensor(layout.frame_rows(frame)) for frame in range(layout.frames)]
        self._positions = torch.cat([table[row] for table, row in zip(tables, rows, strict=True)])  # [F * N, h]
        self._texts = transformer.position_embeddings.weight.detach()

    def read_positions(self, text_length: Tensor, text: int, given: tuple[int, ...]) -> Tensor:
        """Return the position embeddings of `text` left-padded text slots and of given frames, [B, T + F * N, h]."""
        frames = [self._positions[frame * self.slots : (frame + 1) * self.slots] for frame in given]
        words = self._texts[text_positions(text_length, text)]  # [B, T, h]
        return torch.cat((words, *(frame.expand(len(words), -1, -1) for frame in frames)), dim=1)

    def positions(self, cache: KVCache) -> Tensor:
        """Return the position embeddings of the slots of a step, [Q, h]."""
        if cache.numbers is not None:
            return self._positions.index_select(0, cache.numbers)
        rows = [frame * self.slots + slot for frame, slot in cache.slots]
        if rows == list(range(rows[0], rows[0] + len(rows))):
            return self._positions.narrow(0, rows[0], len(rows))
        return self._positions[torch.tensor(rows)]


class TorchDecoder:
    """The fused form in PyTorch operations."""

    def __init__(self, weights: FusedWeights) -> None:
        self._weights = weights
        head = weights.head.float().t()
        # On a CPU a product of few rows is faster with the transposed matrix contiguous in memory.
        self._head = head if head.is_cuda else head.contiguous()

    def prefill(self, cache: KVCache, text: Tensor, text_length: Tensor, slots: Tensor) -> bool:
        """Implement `FusedDecoder.prefill`."""
        return False

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Implement `FusedDecoder.step`."""
        weights = self._weights
        layers = weights.both if cache.use_temporal else weights.backbone
        hidden = F.embedding(ids, weights.words) + weights.positions(cache)
        normed = F.layer_norm(hidden, hidden.shape[-1:], *layers[0].before, EPSILON)
        for number, layer in enumerate(layers):
            out = F.linear(self._attention(F.linear(normed, *layer.qkv_proj), cache, number), *layer.out_proj[0])
            hidden, normed = sandwich_norm(hidden, out, layer.after, layer.before_mlp)
            wide = F.gelu(F.linear(normed, *layer.up_proj), approximate="tanh")
            following = layers[number + 1].before if number + 1 < len(layers) else weights.final
            hidden, normed = sandwich_norm(hidden, F.linear(wide, *layer.down_proj), layer.after_mlp, following)
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Implement `FusedDecoder.logits`."""
        return torch.matmul(hidden.float(), self._head)

    def _attention(self, q_k_v: Tensor, cache: KVCache, layer: int) -> Tensor:
        """Attend in each channel: [B, Q, channels * 3h] -> [B, Q, channels * h]."""
        batch, slots, width = q_k_v.shape
        channels, heads = 2 if cache.use_temporal else 1, self._weights.heads
        size = width // (3 * channels * heads)
        parts = q_k_v.view(batch, slots, channels, 3, heads, size).permute(2, 3, 0, 4, 1, 5)
        return cache.attend(layer, [(parts[channel, 0], parts[channel, 1:]) for channel in range(channels)])


class NativeDecoder:
    """The fused form in C: one call for a step, one for the head. Weights in fp32, or in bf16 or int8 to read less."""

    def __init__(self, weights: FusedWeights, precision: Precision, threads: int) -> None:
        self._threads = threads
        self._weights, self._positions = weights, weights.positions
        common = (weights.final, weights.words, weights.heads)
        self._backbone = cpu_decode.NativeNetwork(weights.backbone, *common, channels=1, precision=precision)
        self._both = cpu_decode.NativeNetwork(weights.both, *common, channels=2, precision=precision)
        self._head = cpu_decode.PackedMatrix(Affine(weights.head, weights.head.new_zeros(len(weights.head))), precision)
        weights.backbone, weights.both = [], []  # packed above

    def prefill(self, cache: KVCache, text: Tensor, text_length: Tensor, slots: Tensor) -> bool:
        """Implement `FusedDecoder.prefill`."""
        positions = self._weights.read_positions(text_length, text.shape[1], cache.num_given)  # [B, T + S, h]
        embedded = F.embedding(torch.cat((text, slots), dim=1), self._weights.words) + positions
        padding = (text.shape[1] - text_length).tolist()
        network = self._both if cache.use_temporal else self._backbone
        cpu_prefill.prefill(network, embedded, padding, prefill_plan(cache), cache.buffers(), self._threads)
        return True

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Implement `FusedDecoder.step`."""
        network = self._both if cache.use_temporal else self._backbone
        return network.run(ids, self._positions(cache), cache.buffers(), cache.spans(), cache.text_bias, self._threads)

    def logits(self, hidden: Tensor) -> Tensor:
        """Implement `FusedDecoder.logits`."""
        return self._head(hidden.float().flatten(0, 1), self._threads).unflatten(0, hidden.shape[:2])


def _affine(layer: Any) -> Affine:
    return Affine(layer.weight.detach(), layer.bias.detach())


def _layer(layer: Any, qkv_proj: Affine, out_proj: Sequence[Affine], gate: Tensor | None = None) -> LayerWeights:
    return LayerWeights(
        before=_affine(layer.input_layernorm),
        after=_affine(layer.third_layernorm),
        before_mlp=_affine(layer.post_attention_layernorm),
        after_mlp=_affine(layer.fourth_layernorm),
        qkv_proj=qkv_proj,
        out_proj=out_proj,
        up_proj=_affine(layer.mlp.dense_h_to_4h),
        down_proj=_affine(layer.mlp.dense_4h_to_h),
        gate=gate,
    )


def _concatenate(backbone: Any, own: AttentionPlus, layer: int) -> tuple[Affine, list[Affine], Tensor]:
    """Return one input projection for both channels, both output projections, and the gate of the first, [h]."""
    inputs = (_affine(backbone.query_key_value), _affine(own.query_key_value[layer]))
    qkv_proj = Affine(torch.cat([each.weight for each in inputs]), torch.cat([each.bias for each in inputs]))
    out_proj = [_affine(backbone.dense), _affine(own.dense[layer])]
    return qkv_proj, out_proj, torch.sigmoid(own.attn_distribution[layer].detach().float())


def _fold(backbone: Any, own: AttentionPlus, layer: int) -> tuple[Affine, list[Affine]]:
    """Return one input and one output projection for both channels, the gate multiplied into the latter."""
    qkv_proj, out_proj, gate = _concatenate(backbone, own, layer)
    parts = [factor[:, None] * each.weight.float() for factor, each in zip((gate, 1 - gate), out_proj)]
    weight, dtype = torch.cat(parts, dim=1), out_proj[0].weight.dtype
    bias = torch.lerp(out_proj[1].bias.float(), out_proj[0].bias.float(), gate)
    return qkv_proj, [Affine(weight.to(dtype), bias.to(dtype))]


def prefill_plan(cache: KVCache) -> PrefillPlan:
    """Return the plan of a prefill of `cache`: of its text and given frames, if there are any."""
    own = cpu_prefill.LayerPattern([_text(cache), *_own(cache)], cache.spatial_slots())
    across = [cpu_prefill.LayerPattern(list(_across(cache, parity)), cache.temporal_slots(parity)) for parity in (0, 1)]
    return PrefillPlan([own, *across], cache.text)


def _text(cache: KVCache) -> QueryGroup:
    text = torch.arange(cache.text)
    return QueryGroup(text, text)


def _own(cache: KVCache) -> Iterable[QueryGroup]:
    """Yield the query groups of the spatial channel: each frame attends to the text and itself."""
    for number, frame in enumerate(cache.num_given):
        tokens = _tokens(cache, number)
        causal = cache.layout.spatial_visibility(cache.stage, frame) is Visibility.CAUSAL
        yield QueryGroup(
            tokens, _after_text(cache, [tokens]), cache.text if causal else None, cache.text_attention_bias
        )


def _across(cache: KVCache, parity: int) -> Iterable[QueryGroup]:
    """Yield the query groups of the temporal channel: frames attend to the text and to other frames.

    In stage 2 this is limited to their region. Frames that attend to the same keys form one group.
    """
    for cells in _regions(cache.layout, parity) if cache.stage == 2 else [slice(None)]:
        parts = [_tokens(cache, number)[cells] for number in range(len(cache.num_given))]
        full: list[int] = []  # frames that attend to all given frames
        for number, frame in enumerate(cache.num_given):
            visible = [cache.layout.temporal_visibility(cache.stage, frame, other) for other in cache.num_given]
            if visible == [Visibility.ALL] * len(visible):
                full.append(number)
                continue
            keys = [part for part, how in zip(parts, visible) if how is not Visibility.NONE]  # its own is the last
            before = cache.text + sum(map(len, keys[:-1]))
            yield QueryGroup(parts[number], _after_text(cache, keys), before)
        if full:
            yield QueryGroup(torch.cat([parts[number] for number in full]), _after_text(cache, parts))


def _regions(layout: TokenLayout, parity: int) -> list[Tensor]:
    """Return the cells of each region, for layers of this parity."""
    regions = torch.as_tensor(layout.regions(layout.shift(parity)))
    return [(regions == region).nonzero().flatten() for region in regions.unique()]


def _tokens(cache: KVCache, number: int) -> Tensor:
    size = cache.layout.tokens_per_frame
    return cache.text + number * size + torch.arange(size)


def _after_text(cache: KVCache, parts: list[Tensor]) -> Tensor:
    return torch.cat([torch.arange(cache.text), *parts])
