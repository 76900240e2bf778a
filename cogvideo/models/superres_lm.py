"""Super-resolution of a frame: text ids and coarse tokens in, logits on a grid three times as fine out.

One pass computes the fp32 logits of all fine tokens; there is no loop over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cogvideo.config import ModelConfig
from cogvideo.models.attention import (
    AttentionPlus,
    attend,
    linear,
    merge_heads,
    split_heads,
    text_padding_mask,
    to_additive_mask,
)
from cogvideo.models.base import ExtraPositions, TokenModel, text_positions
from cogvideo.models.sat_adapter import Transformer
from cogvideo.token_layout import TokenLayout
from kernels.local_attention import local_attention
from kernels.reference import LocalWindows

PAD = 0
"""Id in unused text slots."""


@dataclass(frozen=True)
class TwoScaleAttention:
    """Text and coarse tokens attend as in the backbone. Fine slots attend to their surroundings on both grids."""

    text: int
    layout: TokenLayout
    mask: Tensor  # [B, 1, 1, T + N]: all text slots that hold text, and all coarse tokens

    @classmethod
    def of(cls, layout: TokenLayout, text_length: Tensor, text: int, dtype: torch.dtype) -> TwoScaleAttention:
        seen = text_padding_mask(text_length, text)
        whole = torch.cat((seen, seen.new_ones(len(seen), layout.tokens_per_frame)), dim=1)
        return cls(text, layout, to_additive_mask(whole, dtype)[:, None, None])

    def __call__(self, backbone: Any, own: AttentionPlus, layer: int, hidden: Tensor) -> Tensor:
        t, config = self.text, self.layout.config
        low, high = hidden.split((t + config.tokens_per_frame, self.layout.fine_tokens), dim=1)
        q, k, v = split_heads(linear(backbone.query_key_value, low), own.heads)
        text = attend(q[:, :, :t], k[:, :, :t], v[:, :, :t], self.mask[..., :t])
        coarse = attend(q[:, :, t:], k, v, self.mask)
        fine_q, fine_k, fine_v = split_heads(own.query_key_value[layer](high), own.heads)
        fine = local_attention(
            fine_q,
            fine_k,
            fine_v,
            k[:, :, t:],
            v[:, :, t:],
            LocalWindows(config.fine_grid, config.grid, config.fine_window, config.coarse_window),
        )
        lower = linear(backbone.dense, merge_heads(torch.cat((text, coarse), dim=2)))
        return torch.cat((lower, own.dense[layer](merge_heads(fine))), dim=1)


class UpscalePass(NamedTuple):
    """The state of a pass between two layers."""

    hidden: Tensor  # [B, T + N + fine tokens, h]
    pattern: TwoScaleAttention


class SuperResLM(TokenModel):
    """Direct super-resolution in one pass. `transformer`, `device`: see `TokenModel`."""

    def __init__(
        self,
        config: ModelConfig,
        transformer: Transformer | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(config, transformer, device)
        with torch.random.fork_rng(devices=[]), torch.device(device):
            self.add_mixin("extra_position_embedding", ExtraPositions(self.layout.fine_tokens, config.hidden))
            self.add_mixin("attention_plus", AttentionPlus(config, gated=False))
        if torch.device(device).type != "meta":
            self.get_mixin("attention_plus").reinit(self)

    def forward(self, text: Tensor, text_length: Tensor, coarse: Tensor) -> Tensor:
        """Compute the logits of all fine tokens of a frame, for training and generation.

        text [B, T] ids left-padded with `PAD`, text_length [B] (at least 1), coarse [B, N] image tokens
        -> [B, fine tokens, image_tokens] fp32, row-major on the fine grid.
        """
        ids, positions, pattern = self._inputs(text, text_length, coarse)
        logits: Tensor = super().forward(
            ids,
            positions,
            None,
            pattern=pattern,
            base_slots=pattern.text + self.layout.tokens_per_frame,
            scored=slice(pattern.text + self.layout.tokens_per_frame, None),
        )[0]
        return logits

    # -- the same pass in parts, for layers that are streamed to the device, and logits that are needed in chunks

    @torch.inference_mode()
    def begin(self, text: Tensor, text_length: Tensor, coarse: Tensor) -> UpscalePass:
        """Return the pass before its first layer. Arguments as in `forward`."""
        ids, positions, pattern = self._inputs(text, text_length, coarse)
        base = pattern.text + self.layout.tokens_per_frame
        embedded = self.get_mixin("extra_position_embedding").position_embedding_forward(positions, base_slots=base)
        return UpscalePass(self.word_embedding_forward(ids) + embedded, pattern)

    @torch.inference_mode()
    def layer(self, number: int, at: UpscalePass) -> UpscalePass:
        """Return the pass after layer `number`. It uses the modules of `layer_modules` only."""
        layer, own = self.transformer.layers[number], self.get_mixin("attention_plus")
        attended = at.pattern(layer.attention, own, number, layer.input_layernorm(at.hidden))
        hidden = at.hidden + layer.third_layernorm(attended)
        wide = self.mlp_forward(layer.post_attention_layernorm(hidden), layer_id=torch.tensor(number))
        return UpscalePass(hidden + layer.fourth_layernorm(wide), at.pattern)

    @torch.inference_mode()
    def finish(self, at: UpscalePass) -> Tensor:
        """Return the states of the fine slots after the last layer, [B, fine tokens, h], for `logits`."""
        fine: Tensor = self.transformer.final_layernorm(at.hidden[:, at.pattern.text + self.layout.tokens_per_frame :])
        return fine

    @torch.inference_mode()
    def logits(self, states: Tensor) -> Tensor:
        """Compute fp32 logits [R, image_tokens] from states [R, h]."""
        logits: Tensor = self.final_forward(states[None], scored=slice(None))[0]
        return logits

    def layer_modules(self) -> list[list[nn.Module]]:
        """Return the modules of each layer. All other modules are used before the first or after the last layer."""
        own = self.get_mixin("attention_plus")
        parts = (self.transformer.layers, own.query_key_value, own.dense)
        return [list(layer) for layer in zip(*parts, strict=True)]

    def _inputs(self, text: Tensor, text_length: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, TwoScaleAttention]:
        """Return ids [B, S], positions [B, S] and the attention of text, coarse tokens and fine slots (S in all)."""
        layout, (batch, length) = self.layout, text.shape
        fine = torch.arange(layout.fine_tokens, device=text.device)
        positions = torch.cat((torch.as_tensor(layout.superres_positions(), device=text.device), fine))
        start = coarse.new_full((batch, len(fine)), self.config.start_of_image)
        return (
            torch.cat((text, coarse, start), dim=1),
            torch.cat((text_positions(text_length, length), positions.expand(batch, -1)), dim=1),
            TwoScaleAttention.of(layout, text_length, length, self.dtype),
        )
