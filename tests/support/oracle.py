"""The slow and obviously right model: one sample, no padding, no cache, every pair of tokens asked one by one.

Written from the description of the model alone: it shares the geometry's predicates with the code under test
(`Layout.*_sight`, tested by themselves), the names of the weights, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.token_layout import Stage, TokenLayout, Visibility

Weights = dict[str, Tensor]


def video_logits(
    weights: Weights,
    config: ModelConfig,
    stage: Stage,
    text: Sequence[int],
    clip: Tensor,
    boost: float = 0.0,
    both: bool = True,
) -> Tensor:
    """text ids, clip [F, N] (both False: [1, N]) -> [F, N, image_tokens]; given frames get no temporal boost."""
    layout, (frames, size) = TokenLayout(config), clip.shape
    given = (0,) if stage == 1 else layout.given
    places = [(-1, i) for i in range(len(text))] + [(f, k) for f in range(frames) for k in range(size)]
    spatial = torch.full((len(places), len(places)), -math.inf)
    temporal = [spatial.clone(), spatial.clone()]
    for a, (frame, slot) in enumerate(places):
        for b, (seen, other) in enumerate(places):
            if seen < 0:
                spatial[a, b] = boost if frame >= 0 else 0.0
                for table in temporal:
                    table[a, b] = boost if frame >= 0 and (frame not in given) else 0.0
                continue
            if frame < 0:
                continue
            if frame == seen and sees(layout.spatial_visibility(stage, frame), slot, other):
                spatial[a, b] = 0.0
            for parity, table in enumerate(temporal):
                near = stage == 1 or same_region(layout, parity, slot, other)
                if near and sees(layout.temporal_visibility(stage, frame, seen), slot, other):
                    table[a, b] = 0.0
    x = torch.stack([embed(weights, layout, text, clip, place) for place in places])
    hidden = run(weights, config, x, spatial, temporal if both else None, len(text))
    logits = hidden[len(text) :] @ weights["transformer.word_embeddings.weight"][: config.image_tokens].T
    return logits.view(frames, size, -1)


def sees(sight: Visibility, slot: int, other: int) -> bool:
    return sight is Visibility.ALL or (sight is Visibility.CAUSAL and other <= slot)


def same_region(layout: TokenLayout, parity: int, cell: int, other: int) -> bool:
    """Same window, and on odd layers not across the edge around which shifted windows wrap."""
    height, width = layout.config.grid
    window = layout.config.window
    shift = window // 2 if parity else 0

    def part(at: int, side: int) -> tuple[int, bool]:
        return (at - shift) % side // window, at < shift

    rows, columns = zip(divmod(cell, width), divmod(other, width))
    return part(rows[0], height) == part(rows[1], height) and part(columns[0], width) == part(columns[1], width)


def embed(weights: Weights, layout: TokenLayout, text: Sequence[int], clip: Tensor, place: tuple[int, int]) -> Tensor:
    frame, slot = place
    words = weights["transformer.word_embeddings.weight"]
    base = weights["transformer.position_embeddings.weight"]
    if frame < 0:
        return words[text[slot]] + base[slot]
    word = words[layout.config.start_of_image if slot == 0 else int(clip[frame, slot - 1])]
    position = layout.config.image_start + frame * layout.tokens_per_frame + slot
    extra = position - layout.config.image_start - layout.tokens_per_frame
    if extra < 0:
        return word + base[position]
    return word + weights["mixins.extra_position_embedding.position_embeddings.weight"][extra]


def run(
    weights: Weights, config: ModelConfig, x: Tensor, spatial: Tensor, temporal: list[Tensor] | None, text: int
) -> Tensor:
    """All layers: x [S, h], masks [S, S]; the second channel mixes into what follows the text."""
    for layer in range(config.layers):
        name = f"transformer.layers.{layer}."
        normal = norm(weights, name + "input_layernorm", x)
        attended = attention(weights, name + "attention.query_key_value", normal, spatial, config.heads)
        out = affine(weights, name + "attention.dense", attended)
        if temporal is not None:
            plus = "mixins.attention_plus."
            across = attention(weights, f"{plus}query_key_value.{layer}", normal, temporal[layer % 2], config.heads)
            across = affine(weights, f"{plus}dense.{layer}", across)
            s = torch.sigmoid(weights[f"{plus}attn_distribution.{layer}"])
            out = torch.cat((out[:text], (s * out + (1 - s) * across)[text:]))
        x = x + norm(weights, name + "third_layernorm", out)
        x = x + norm(weights, name + "fourth_layernorm", mlp(weights, name, x))
    return norm(weights, "transformer.final_layernorm", x)


def mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    y = affine(weights, name + "mlp.dense_h_to_4h", norm(weights, name + "post_attention_layernorm", x))
    y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return affine(weights, name + "mlp.dense_4h_to_h", y)


def attention(weights: Weights, name: str, x: Tensor, mask: Tensor, heads: int) -> Tensor:
    """[S, h] -> [S, h], before the output projection."""
    q, k, v = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in affine(weights, name, x).chunk(3, dim=1))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + mask
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def affine(weights: Weights, name: str, x: Tensor) -> Tensor:
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"], 1e-5)


def superres_logits(weights: Weights, config: ModelConfig, text: Sequence[int], coarse: Tensor) -> Tensor:
    """text ids, coarse [N] -> [fine tokens, image_tokens]."""
    words = weights["transformer.word_embeddings.weight"]
    base = weights["transformer.position_embeddings.weight"]
    size, t = len(coarse), len(text)
    start = config.image_start + 1
    low = torch.cat((words[list(text)] + base[:t], words[coarse] + base[start : start + size]))
    extra = weights["mixins.extra_position_embedding.position_embeddings.weight"]
    high = words[config.start_of_image] + extra
    below = torch.zeros(t + size, t + size)
    below[:t, t:] = -math.inf
    near = _around(config)
    for layer in range(config.layers):
        name, plus = f"transformer.layers.{layer}.", "mixins.attention_plus."
        normal = norm(weights, name + "input_layernorm", low)
        coarse_kv = affine(weights, name + "attention.query_key_value", normal)[t:].chunk(3, dim=1)[1:]
        out = attention(weights, name + "attention.query_key_value", normal, below, config.heads)
        out = affine(weights, name + "attention.dense", out)
        fine = affine(weights, f"{plus}query_key_value.{layer}", norm(weights, name + "input_layernorm", high))
        around = affine(weights, f"{plus}dense.{layer}", _attend_around(fine, coarse_kv, near, config.heads))
        low = low + norm(weights, name + "third_layernorm", out)
        high = high + norm(weights, name + "third_layernorm", around)
        low = low + norm(weights, name + "fourth_layernorm", mlp(weights, name, low))
        high = high + norm(weights, name + "fourth_layernorm", mlp(weights, name, high))
    return norm(weights, "transformer.final_layernorm", high) @ words[: config.image_tokens].T


def _around(config: ModelConfig) -> Tensor:
    """[fine cell, fine cell + coarse cell]: 0 inside the two windows, -10000 outside."""
    (height, width), (low_height, low_width) = config.fine_grid, config.grid
    mask = torch.full((height * width, height * width + low_height * low_width), -10000.0)
    for y in range(height):
        for x in range(width):
            for row in range(height):
                for column in range(width):
                    if abs(row - y) <= config.fine_window[0] // 2 and abs(column - x) <= config.fine_window[1] // 2:
                        mask[y * width + x, row * width + column] = 0.0
            for row in range(low_height):
                for column in range(low_width):
                    down, right = abs(row - y // config.upscale), abs(column - x // config.upscale)
                    if down <= config.coarse_window[0] // 2 and right <= config.coarse_window[1] // 2:
                        mask[y * width + x, height * width + row * low_width + column] = 0.0
    return mask


def _attend_around(fine: Tensor, coarse: tuple[Tensor, ...], mask: Tensor, heads: int) -> Tensor:
    q, k, v = fine.chunk(3, dim=1)
    k, v = torch.cat((k, coarse[0])), torch.cat((v, coarse[1]))
    q, k, v = (part.unflatten(1, (heads, -1)).transpose(0, 1) for part in (q, k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + mask
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
