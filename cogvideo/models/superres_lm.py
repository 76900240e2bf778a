"""Super-resolution: the tokens of a frame in, the tokens of the same frame on a grid three times as fine out.

In: text ids and coarse tokens. Out: logits of all fine tokens at once, fp32; one pass, no loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.layout import Layout
from cogvideo.models.attention import (
    AttentionPlus,
    additive,
    attend,
    linear,
    merge_heads,
    split_heads,
    text_seen,
)
from cogvideo.models.sat_bridge import Transformer
from cogvideo.models.token_model import ExtraPositions, TokenModel, text_positions
from kernels.local_attention import local_attention

PAD = 0
"""Id in the text slots that are not used."""


@dataclass(frozen=True)
class TwoLevels:
    """Text and coarse tokens attend as in the backbone; fine slots attend what lies around them on both grids."""

    text: int
    layout: Layout
    mask: Tensor  # [B, 1, 1, T + N]: every real text slot and all coarse tokens

    @classmethod
    def of(cls, layout: Layout, text_length: Tensor, text: int, dtype: torch.dtype) -> TwoLevels:
        seen = text_seen(text_length, text)
        whole = torch.cat((seen, seen.new_ones(len(seen), layout.tokens_per_frame)), dim=1)
        return cls(text, layout, additive(whole, dtype)[:, None, None])

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
            fine_grid=config.fine_grid,
            coarse_grid=config.grid,
            fine_window=config.fine_window,
            coarse_window=config.coarse_window,
        )
        lower = linear(backbone.dense, merge_heads(torch.cat((text, coarse), dim=2)))
        return torch.cat((lower, own.dense[layer](merge_heads(fine))), dim=1)


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
        """Logits of all fine tokens of a frame; the same pass trains and draws.

        text [B, T] ids left-padded with `PAD`, text_length [B] (at least 1), coarse [B, N] image tokens
        -> [B, fine tokens, image_tokens] fp32, row-major on the fine grid.
        """
        layout, (batch, length) = self.layout, text.shape
        fine = torch.arange(layout.fine_tokens, device=text.device)
        positions = torch.cat((torch.as_tensor(layout.superres_positions(), device=text.device), fine))
        logits: Tensor = super().forward(
            torch.cat((text, coarse, coarse.new_full((batch, len(fine)), self.config.start_of_image)), dim=1),
            torch.cat((text_positions(text_length, length), positions.expand(batch, -1)), dim=1),
            None,
            pattern=TwoLevels.of(layout, text_length, length, self.dtype),
            base_slots=length + layout.tokens_per_frame,
            scored=slice(length + layout.tokens_per_frame, None),
        )[0]
        return logits
