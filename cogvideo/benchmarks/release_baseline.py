"""The decoding algorithm of the 2022 release, implemented by us as the baseline of `bench --compare release`.

Its logits equal those of `inference.decoding`. Differences in how they are computed:

- a forward pass for each of the two sequences of guidance;
- keys and values are appended by concatenation; in stage 1, the spatial channel keeps text and all frames;
- the temporal channel is computed for the first frame too, and discarded;
- in stage 2, Python builds a list of indices for the window of each layer and token;
- attention consists of single operations; sampling is a loop over samples with a device synchronization for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.config import TokenSampling
from cogvideo.inference.sampling import exponential_noise
from cogvideo.models.base import left_pad
from cogvideo.models.kv_cache import CacheKey, KVCache
from cogvideo.models.video_lm import VideoLM


class _Memory(KVCache):
    """Keys and values of text and given frames in each layer, concatenated to [B, slots, 2h]."""

    spatial_text: list[Tensor]
    temporal_all: list[Tensor]

    def __init__(self, lm: VideoLM, rows: int, text: int, given: tuple[int, ...], both: bool, bias: float) -> None:
        key = CacheKey(lm.stage, rows, text, given, both, bias)
        super().__init__(lm.layout, key, lm.transformer.word_embeddings.weight)
        self.spatial_text, self.temporal_all = [], []

    def write_spatial(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.spatial_text.append(_side_by_side(k, v)[:, : self.text])

    def write_temporal(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.temporal_all.append(_side_by_side(k, v))


class ReleaseStructure:
    """Decoder of `rows` sequences with the same text; frames are generated one after another.

    `given`: frames that are prefilled, with `tokens` [rows, len(given), N]. `use_temporal`: False for the first frame.
    """

    @torch.inference_mode()
    def __init__(
        self,
        lm: VideoLM,
        text: Sequence[int],
        rows: int,
        given: tuple[int, ...] = (),
        tokens: Tensor | None = None,
        text_attention_bias: float = 0.0,
        use_temporal: bool = True,
    ) -> None:
        self.lm, self.text_attention_bias, self.use_temporal, self.text = (
            lm,
            text_attention_bias,
            use_temporal,
            len(text),
        )
        self.order = list(lm.layout.stage2_order if lm.stage == 2 else range(lm.layout.frames))
        weight = lm.transformer.word_embeddings.weight
        memory = _Memory(lm, rows, len(text), given, use_temporal, text_attention_bias)
        ids, length = left_pad([text] * rows, device=weight.device)
        lm.prefill_fused(memory, ids, length, ids[:, :0] if tokens is None else lm.slots(tokens).flatten(1))
        nothing = weight.new_zeros(rows, len(given) * lm.layout.tokens_per_frame, 2 * lm.config.hidden)
        own = nothing if lm.stage == 1 else nothing[:, :0]
        self.spatial = [torch.cat((text_part, own), dim=1) for text_part in memory.spatial_text]
        # The content is irrelevant for the first frame: its temporal output is discarded.
        across = memory.temporal_all if use_temporal else memory.spatial_text
        self.text_across = [part[:, : self.text] for part in across]
        self.across = [part[:, self.text :] for part in across]

    def select_slot(self, frame: int, slot: int) -> None:
        """Resize the caches as if everything before `slot` of `frame` had been generated, to time any step."""
        size = self.lm.layout.tokens_per_frame
        before = self.order.index(frame) * size + slot
        own = slot if self.lm.stage == 2 else before
        self.spatial = [_resize(memory, self.text + own) for memory in self.spatial]
        self.across = [_resize(memory, before) for memory in self.across]

    @torch.inference_mode()
    def step(self, ids: Tensor, frame: int, slot: int) -> Tensor:
        """Process ids [B] of a slot. Returns logits [B, image_tokens]; slots must come in decoding order."""
        transformer, config = self.lm.transformer, self.lm.config
        if slot == 0 and self.lm.stage == 2:
            self.spatial = [memory[:, : self.text] for memory in self.spatial]
        table = transformer if frame == 0 else self.lm.get_mixin("extra_position_embedding")
        row = int(self.lm.layout.frame_rows(frame)[slot])
        x = transformer.word_embeddings.weight[ids] + table.position_embeddings.weight[row]
        x = x[:, None]  # [B, 1, h]
        for number, layer in enumerate(transformer.layers):
            x = x + layer.third_layernorm(self._attention(number, layer.attention, layer.input_layernorm(x), slot))
            wide = layer.mlp.dense_h_to_4h(layer.post_attention_layernorm(x))
            x = x + layer.fourth_layernorm(layer.mlp.dense_4h_to_h(F.gelu(wide, approximate="tanh")))
        x = transformer.final_layernorm(x)[:, 0].float()
        return F.linear(x, transformer.word_embeddings.weight[: config.image_tokens].float())

    def _attention(self, number: int, backbone: Any, x: Tensor, slot: int) -> Tensor:
        """Compute both channels of one layer. `x`: [B, 1, h] after LN1. Returns [B, 1, h]."""
        own = self.lm.get_mixin("attention_plus")
        q, k_v = backbone.query_key_value(x).tensor_split([x.shape[2]], dim=2)
        self.spatial[number] = memory = torch.cat((self.spatial[number], k_v), dim=1)
        seen = torch.cat((memory[:, : self.text], memory[:, memory.shape[1] - slot - 1 :]), dim=1)
        spatial: Tensor = backbone.dense(self._attend(q, seen))
        q, k_v = own.query_key_value[number](x).tensor_split([x.shape[2]], dim=2)
        self.across[number] = memory = torch.cat((self.across[number], k_v), dim=1)
        if self.lm.stage == 2:
            memory = memory.index_select(1, self._window(number, memory.shape[1] - 1, memory.device))
        temporal = own.dense[number](self._attend(q, torch.cat((self.text_across[number], memory), dim=1)))
        weight = torch.sigmoid(own.attn_distribution[number])
        mixed: Tensor = weight * spatial + (1 - weight) * temporal
        return mixed if self.use_temporal else spatial

    def _window(self, layer: int, last: int, device: torch.device) -> Tensor:
        """Return the positions of the temporal channel that the slot at position `last` attends to."""
        (height, width), side = self.lm.config.grid, self.lm.config.window
        shift, size = side // 2 if layer % 2 else 0, height * width
        frame, slot = divmod(last, size)
        top = (slot // width + shift) // side * side - shift
        left = (slot % width + shift) // side * side - shift
        cells = []
        for row in range(max(0, top), min(height, top + side)):
            for column in range(max(0, left), min(width, left + side)):
                cells.append(row * width + column)
        places = []
        for before in range(frame):
            for cell in cells:
                places.append(before * size + cell)
        for cell in cells:
            if cell <= slot:
                places.append(frame * size + cell)
        return torch.tensor(places, device=device)

    def _attend(self, q: Tensor, k_v: Tensor) -> Tensor:
        """Attend from q [B, 1, h] to k_v [B, keys, 2h], text first. Returns [B, 1, h]."""
        heads = self.lm.config.heads
        q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (q, *k_v.chunk(2, dim=2)))
        scores = torch.matmul(q / q.shape[-1] ** 0.5, k.transpose(2, 3))  # [B, heads, 1, seen]
        scores[..., : self.text] += self.text_attention_bias
        return torch.matmul(scores.softmax(-1), v).transpose(1, 2).flatten(2)


def sample(logits: Tensor, labels: Tensor, keys: Tensor, options: TokenSampling) -> Tensor:
    """Sample ids [B] from logits [B, V], row by row. `labels`: clusters [V], from 0; `keys`: noise keys [B, 2]."""
    ids = []
    everything = torch.arange(len(labels), device=labels.device)
    for row, key in zip(logits.float() / options.temperature, keys):
        clusters = torch.zeros(int(labels.max()) + 1, device=labels.device).scatter_add_(0, labels, row.softmax(-1))
        mass, kept = clusters.topk(min(options.top_k, len(clusters)))
        mass = mass / mass.sum()
        scores = torch.zeros_like(row)
        for weight, cluster in zip(mass, kept):
            inside = everything[labels == cluster]
            scores[inside] = weight * (row[inside] / options.within_cluster_temperature).softmax(-1)
        ids.append(int((scores / exponential_noise(key[None], everything[None])[0]).argmax().item()))
    return torch.tensor(ids, device=logits.device)


def _side_by_side(k: Tensor, v: Tensor) -> Tensor:
    """Concatenate two tensors [B, heads, S, d] to [B, S, 2h]."""
    return torch.cat((k.transpose(1, 2).flatten(2), v.transpose(1, 2).flatten(2)), dim=2)


def _resize(memory: Tensor, length: int) -> Tensor:
    """Cut [B, S, 2h] to `length` slots, or pad it with zeros."""
    missing = max(0, length - memory.shape[1])
    return F.pad(memory[:, :length], (0, 0, 0, missing))
