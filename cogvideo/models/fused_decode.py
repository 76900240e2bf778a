"""A decoding step with fewer and larger products: weights laid side by side and folded, built once from a `VideoLM`.

In: what the slots of a step hold. Out: their hidden states after all layers and the final LayerNorm, and the scores.
The unfolded form, `VideoLM` itself, stays the reference and the form that is trained; this one is a copy, made where
there is memory to spare: for small networks on a CPU, for large ones on a large card. It has two forms, with the same
numbers: in PyTorch (`PlainSteps`), and in C (`CompiledSteps`) on a CPU where a compiler is at hand.
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
"""Numbers in the copy on a CPU, above which memory matters more than the time of a step."""

ROOM = 3
"""On a card: it must have room for so many times what both stages' copies take, when the networks are there."""


def should_fuse(config: ModelConfig, device: torch.device) -> bool:
    """Whether networks of this size, which stay on this device, are to be fused when they have been loaded."""
    if device.type == "cuda":
        copies = 2 * config.layers * 8 * config.hidden**2 * 2  # what is not laid anew is shared; fp16
        return bool(torch.cuda.mem_get_info(device)[0] >= ROOM * copies)
    numbers = config.layers * 16 * config.hidden**2 + config.image_tokens * config.hidden
    return device.type == "cpu" and numbers <= LARGEST


class FusedDecoder(Protocol):
    """The layers of stage 1 or 2 as a step needs them. Later changes of the network's weights are not seen."""

    def prefill(self, cache: KVCache, text: Tensor, text_length: Tensor, slots: Tensor) -> bool:
        """Reads text [B, T] and slots [B, S] of given frames into `cache`. False: that is left to the network."""
        ...

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """ids [B, Q] of the slots that `cache` was told to `seek` -> hidden states [B, Q, h]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """[B, Q, h] -> [B, Q, image_tokens], fp32."""
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
    """`positions`: the extra table. `head`: see `TokenModel`. `precision`, `threads`: of the compiled form; the plain
    one has its caller's.
    """
    in_c = compiled and cpu_decode.unsupported_reason(transformer.word_embeddings.weight) is None
    weights = FusedWeights(layout, transformer, own, positions, head, folded=not in_c)
    return NativeDecoder(weights, precision, threads) if in_c else TorchDecoder(weights)


class FusedWeights:
    """What both forms are made of. `folded`: the gate is multiplied into one matrix that joins both channels, which
    takes more bits than the two had; else it stays beside them.
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
        join = _fold if folded else _beside
        self.both = [_layer(layer, *join(layer.attention, own, i)) for i, layer in enumerate(transformer.layers)]
        tables = [transformer.position_embeddings.weight, *[positions] * (layout.frames - 1)]
        rows = [torch.as_tensor(layout.frame_rows(frame)) for frame in range(layout.frames)]
        self._positions = torch.cat([table[row] for table, row in zip(tables, rows, strict=True)])  # [F * N, h]
        self._texts = transformer.position_embeddings.weight.detach()

    def read_positions(self, text_length: Tensor, text: int, given: tuple[int, ...]) -> Tensor:
        """Of `text` left-padded text slots and the slots of given frames, [B, T + F * N, h]."""
        frames = [self._positions[frame * self.slots : (frame + 1) * self.slots] for frame in given]
        words = self._texts[text_positions(text_length, text)]  # [B, T, h]
        return torch.cat((words, *(frame.expand(len(words), -1, -1) for frame in frames)), dim=1)

    def positions(self, cache: KVCache) -> Tensor:
        """Of the slots of a step, [Q, h]."""
        if cache.numbers is not None:
            return self._positions.index_select(0, cache.numbers)
        at = [frame * self.slots + slot for frame, slot in cache.slots]
        if at == list(range(at[0], at[0] + len(at))):
            return self._positions.narrow(0, at[0], len(at))
        return self._positions[torch.tensor(at)]


class TorchDecoder:
    """Each operation a call of PyTorch."""

    def __init__(self, weights: FusedWeights) -> None:
        self._weights = weights
        head = weights.head.float().t()
        # On a CPU a product of few rows is quicker with the matrix the other way round.
        self._head = head if head.is_cuda else head.contiguous()

    def prefill(self, cache: KVCache, text: Tensor, text_length: Tensor, slots: Tensor) -> bool:
        """See `FusedSteps`."""
        return False

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """See `FusedSteps`."""
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
        """See `FusedSteps`."""
        return torch.matmul(hidden.float(), self._head)

    def _attention(self, q_k_v: Tensor, cache: KVCache, layer: int) -> Tensor:
        """[B, Q, channels * 3h] -> [B, Q, channels * h]."""
        batch, slots, width = q_k_v.shape
        channels, heads = 2 if cache.use_temporal else 1, self._weights.heads
        size = width // (3 * channels * heads)
        parts = q_k_v.view(batch, slots, channels, 3, heads, size).permute(2, 3, 0, 4, 1, 5)
        return cache.attend(layer, [(parts[channel, 0], parts[channel, 1:]) for channel in range(channels)])


class NativeDecoder:
    """A step is one call; so is the head. Weights in fp32, or in bf16 or int8 for a step that reads less."""

    def __init__(self, weights: FusedWeights, precision: Precision, threads: int) -> None:
        self._threads = threads
        self._weights, self._positions = weights, weights.positions
        common = (weights.final, weights.words, weights.heads)
        self._backbone = cpu_decode.NativeNetwork(weights.backbone, *common, channels=1, precision=precision)
        self._both = cpu_decode.NativeNetwork(weights.both, *common, channels=2, precision=precision)
        self._head = cpu_decode.PackedMatrix(Affine(weights.head, weights.head.new_zeros(len(weights.head))), precision)
        weights.backbone, weights.both = [], []  # packed above

    def prefill(self, cache: KVCache, text: Tensor, text_length: Tensor, slots: Tensor) -> bool:
        """See `FusedSteps`."""
        at = self._weights.read_positions(text_length, text.shape[1], cache.num_given)  # [B, T + S, h]
        embedded = F.embedding(torch.cat((text, slots), dim=1), self._weights.words) + at
        padding = (text.shape[1] - text_length).tolist()
        steps = self._both if cache.use_temporal else self._backbone
        cpu_prefill.prefill(steps, embedded, padding, prefill_plan(cache), cache.buffers(), self._threads)
        return True

    def step(self, ids: Tensor, cache: KVCache) -> Tensor:
        """See `FusedSteps`."""
        steps = self._both if cache.use_temporal else self._backbone
        return steps.run(ids, self._positions(cache), cache.buffers(), cache.spans(), cache.text_bias, self._threads)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `FusedSteps`."""
        return self._head(hidden.float().flatten(0, 1), self._threads).unflatten(0, hidden.shape[:2])


def _affine(layer: Any) -> Affine:
    return Affine(layer.weight.detach(), layer.bias.detach())


def _layer(layer: Any, inward: Affine, outward: Sequence[Affine], share: Tensor | None = None) -> LayerWeights:
    return LayerWeights(
        before=_affine(layer.input_layernorm),
        after=_affine(layer.third_layernorm),
        before_mlp=_affine(layer.post_attention_layernorm),
        after_mlp=_affine(layer.fourth_layernorm),
        qkv_proj=inward,
        out_proj=outward,
        up_proj=_affine(layer.mlp.dense_h_to_4h),
        down_proj=_affine(layer.mlp.dense_4h_to_h),
        gate=share,
    )


def _beside(backbone: Any, own: AttentionPlus, layer: int) -> tuple[Affine, list[Affine], Tensor]:
    """Both channels' projections: into queries, keys and values as one, out each for itself, and the first's share."""
    inward = (_affine(backbone.query_key_value), _affine(own.query_key_value[layer]))
    q_k_v = Affine(torch.cat([way.weight for way in inward]), torch.cat([way.bias for way in inward]))
    outward = [_affine(backbone.dense), _affine(own.dense[layer])]
    return q_k_v, outward, torch.sigmoid(own.attn_distribution[layer].detach().float())  # [h]


def _fold(backbone: Any, own: AttentionPlus, layer: int) -> tuple[Affine, list[Affine]]:
    """The same with one projection out, with the shares multiplied in."""
    q_k_v, outward, share = _beside(backbone, own, layer)
    parts = [gate[:, None] * way.weight.float() for gate, way in zip((share, 1 - share), outward)]
    weight, kind = torch.cat(parts, dim=1), outward[0].weight.dtype
    bias = torch.lerp(outward[1].bias.float(), outward[0].bias.float(), share)
    return q_k_v, [Affine(weight.to(kind), bias.to(kind))]


def prefill_plan(cache: KVCache) -> PrefillPlan:
    """For the frames that are given to `cache`; without any for the text alone."""
    own = cpu_prefill.LayerPattern([_text(cache), *_own(cache)], cache.spatial_slots())
    across = [cpu_prefill.LayerPattern(list(_across(cache, parity)), cache.temporal_slots(parity)) for parity in (0, 1)]
    return PrefillPlan([own, *across], cache.text)


def _text(cache: KVCache) -> QueryGroup:
    text = torch.arange(cache.text)
    return QueryGroup(text, text)


def _own(cache: KVCache) -> Iterable[QueryGroup]:
    """Each frame sees the text and itself."""
    for number, frame in enumerate(cache.num_given):
        tokens = _tokens(cache, number)
        causal = cache.layout.spatial_visibility(cache.stage, frame) is Visibility.CAUSAL
        yield QueryGroup(
            tokens, _after_text(cache, [tokens]), cache.text if causal else None, cache.text_attention_bias
        )


def _across(cache: KVCache, parity: int) -> Iterable[QueryGroup]:
    """Each frame sees the text and other frames, or of them what is in its region; those that see the same together."""
    for cells in _regions(cache.layout, parity) if cache.stage == 2 else [slice(None)]:
        parts = [_tokens(cache, number)[cells] for number in range(len(cache.num_given))]
        alike: list[int] = []
        for number, frame in enumerate(cache.num_given):
            sights = [cache.layout.temporal_visibility(cache.stage, frame, seen) for seen in cache.num_given]
            if sights == [Visibility.ALL] * len(sights):
                alike.append(number)
                continue
            seen = [part for part, sight in zip(parts, sights) if sight is not Visibility.NONE]  # its own is the last
            before = cache.text + sum(map(len, seen[:-1]))
            yield QueryGroup(parts[number], _after_text(cache, seen), before)
        if alike:
            yield QueryGroup(torch.cat([parts[number] for number in alike]), _after_text(cache, parts))


def _regions(layout: TokenLayout, parity: int) -> list[Tensor]:
    """Cells of each region."""
    regions = torch.as_tensor(layout.regions(layout.shift(parity)))
    return [(regions == region).nonzero().flatten() for region in regions.unique()]


def _tokens(cache: KVCache, number: int) -> Tensor:
    size = cache.layout.tokens_per_frame
    return cache.text + number * size + torch.arange(size)


def _after_text(cache: KVCache, parts: list[Tensor]) -> Tensor:
    return torch.cat([torch.arange(cache.text), *parts])
