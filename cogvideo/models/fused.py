"""A decoding step with fewer and larger products: weights laid side by side and folded, built once from a `VideoLM`.

In: hidden states of a step [B, Q, h], after the embeddings. Out: the same after all layers and the final LayerNorm. The
unfolded form, `VideoLM` itself, stays the reference and the form that is trained; this one is a copy, made where the
memory is no matter and a step is short: small networks on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.models.attention import AttentionPlus, attend_step
from cogvideo.models.cache import Cache

LARGEST = 2**28
"""Numbers in the copy, above which memory matters more than the time of a step."""


def fusing_pays(config: ModelConfig, device: torch.device) -> bool:
    """Whether networks of this size on this device are to be fused when they are loaded."""
    numbers = config.layers * 16 * config.hidden**2 + config.image_tokens * config.hidden
    return device.type == "cpu" and numbers <= LARGEST


@dataclass(frozen=True)
class _Affine:
    """Weight and bias of a linear layer or of a LayerNorm."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, layer: Any) -> _Affine:
        return cls(layer.weight.detach(), layer.bias.detach())

    def linear(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def norm(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, 1e-5)


@dataclass(frozen=True)
class _Layer:
    """One layer, for both channels or for the backbone alone."""

    before: _Affine
    q_k_v: _Affine  # [channels * 3h, h]
    out: _Affine  # [h, channels * h]: with two channels [s * Wo, (1 - s) * Wo_plus]
    after: _Affine
    before_mlp: _Affine
    widen: _Affine
    narrow: _Affine
    after_mlp: _Affine

    @classmethod
    def of(cls, layer: Any, q_k_v: _Affine, out: _Affine) -> _Layer:
        norms = (layer.input_layernorm, layer.third_layernorm, layer.post_attention_layernorm, layer.fourth_layernorm)
        before, after, before_mlp, after_mlp = (_Affine.of(norm) for norm in norms)
        widen, narrow = _Affine.of(layer.mlp.dense_h_to_4h), _Affine.of(layer.mlp.dense_4h_to_h)
        return cls(before, q_k_v, out, after, before_mlp, widen, narrow, after_mlp)


class FusedSteps:
    """The layers of stage 1 or 2 as a step needs them. Later changes of the network's weights are not seen."""

    @torch.no_grad()
    def __init__(self, transformer: Any, own: AttentionPlus, image_tokens: int) -> None:
        self.heads = own.heads
        self.final = _Affine.of(transformer.final_layernorm)
        self.backbone = [
            _Layer.of(layer, _Affine.of(layer.attention.query_key_value), _Affine.of(layer.attention.dense))
            for layer in transformer.layers
        ]
        self.both = [_Layer.of(layer, *_fold(layer.attention, own, i)) for i, layer in enumerate(transformer.layers)]
        # A product of few rows is quicker with the matrix the other way round.
        self.head = transformer.word_embeddings.weight[:image_tokens].detach().float().t().contiguous()

    def run(self, hidden: Tensor, cache: Cache) -> Tensor:
        """hidden [B, Q, h] of the slots that `cache` was told to `seek` -> [B, Q, h]."""
        for number, layer in enumerate(self.both if cache.both else self.backbone):
            out = layer.out.linear(self._attention(layer.q_k_v.linear(layer.before.norm(hidden)), cache, number))
            hidden = layer.after.norm(out).add_(hidden)
            wide = F.gelu(layer.widen.linear(layer.before_mlp.norm(hidden)), approximate="tanh")
            hidden = layer.after_mlp.norm(layer.narrow.linear(wide)).add_(hidden)
        return self.final.norm(hidden)

    def scores(self, hidden: Tensor) -> Tensor:
        """[B, Q, h] -> [B, Q, image_tokens], fp32."""
        return torch.matmul(hidden.float(), self.head)

    def _attention(self, q_k_v: Tensor, cache: Cache, layer: int) -> Tensor:
        """[B, Q, channels * 3h] -> [B, Q, channels * h]."""
        batch, slots, width = q_k_v.shape
        channels = 2 if cache.both else 1
        size = width // (3 * channels * self.heads)
        parts = q_k_v.view(batch, slots, channels, 3, self.heads, size).permute(2, 3, 0, 4, 1, 5)
        done = attend_step(parts[0, 0], cache.spatial(layer, parts[0, 1:]))  # [B, heads, Q, d]
        if cache.both:
            done = torch.cat((done, attend_step(parts[1, 0], cache.temporal(layer, parts[1, 1:]))), dim=1)
        return done.transpose(1, 2).flatten(2)


def _fold(backbone: Any, own: AttentionPlus, layer: int) -> tuple[_Affine, _Affine]:
    """Both channels' projections as one: into queries, keys and values, and out, with the gate multiplied in."""
    inward = (_Affine.of(backbone.query_key_value), _Affine.of(own.query_key_value[layer]))
    outward = (_Affine.of(backbone.dense), _Affine.of(own.dense[layer]))
    share = torch.sigmoid(own.attn_distribution[layer].float())  # [h]
    parts = [gate[:, None] * way.weight.float() for gate, way in zip((share, 1 - share), outward)]
    weight, kind = torch.cat(parts, dim=1), outward[0].weight.dtype
    bias = torch.lerp(outward[1].bias.float(), outward[0].bias.float(), share)
    q_k_v = _Affine(torch.cat([way.weight for way in inward]), torch.cat([way.bias for way in inward]))
    return q_k_v, _Affine(weight.to(kind), bias.to(kind))
