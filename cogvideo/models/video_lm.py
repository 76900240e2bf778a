"""Stages 1 and 2: text and frames in, scores of the next image token out. One definition trains and draws.

In: token ids. Out: logits over the image tokens, fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.config import ModelConfig
from cogvideo.layout import Layout, Stage
from cogvideo.models.attention import INIT_STD, AttentionPlus, ClipPattern, ImagePattern, Pattern, linear
from cogvideo.models.sat_bridge import BaseMixin, BaseModel, Transformer, build_transformer, sat_arguments


class ExtraPositions(BaseMixin):  # type: ignore[misc]
    """The positions that the backbone's table has no rows for."""

    def __init__(self, rows: int, hidden: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(rows, hidden)
        if not self.position_embeddings.weight.is_meta:
            nn.init.normal_(self.position_embeddings.weight, std=INIT_STD)

    def position_embedding_forward(self, position_ids: Tensor, *, base_slots: int, **_: Any) -> Tensor:
        """The first `base_slots` of `position_ids` [B or 1, S] are rows of the backbone's table, the rest of ours."""
        base, extra = position_ids[:, :base_slots], position_ids[:, base_slots:]
        parts = (self.transformer.position_embeddings(base), self.position_embeddings(extra))
        return parts[0] if not extra.shape[1] else parts[1] if not base.shape[1] else torch.cat(parts, dim=1)


class TokenModel(BaseModel):  # type: ignore[misc]
    """What all three networks have in common: a backbone, perhaps shared, and a head over the image tokens."""

    def __init__(self, config: ModelConfig, transformer: Transformer | None, device: str | torch.device) -> None:
        backbone = build_transformer(config, device) if transformer is None else transformer
        super().__init__(sat_arguments(config), transformer=backbone)
        self.config = config
        self.layout = Layout(config)

    @property
    def dtype(self) -> torch.dtype:
        weight: Tensor = self.transformer.word_embeddings.weight
        return weight.dtype

    def word_embedding_forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        return F.embedding(input_ids, self.transformer.word_embeddings.weight)

    def mlp_forward(self, hidden_states: Tensor, *, layer_id: Tensor, **_: Any) -> Tensor:
        mlp = self.transformer.layers[int(layer_id)].mlp
        return linear(mlp.dense_4h_to_h, F.gelu(linear(mlp.dense_h_to_4h, hidden_states), approximate="tanh"))

    def final_forward(self, hidden: Tensor, *, first_output: int, **_: Any) -> Tensor:
        """Logits of slots `first_output`.. : [B, S, h] -> [B, S - first_output, image_tokens], fp32."""
        head: Tensor = self.transformer.word_embeddings.weight[: self.config.image_tokens]
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden[:, first_output:].float(), head.float())

    def slots(self, frames: Tensor) -> Tensor:
        """Tokens [..., N] -> what their slots hold: <start_of_image>, then all tokens but the last."""
        start = torch.full_like(frames[..., :1], self.config.start_of_image)
        return torch.cat((start, frames[..., :-1]), dim=-1)


def text_positions(text_length: Tensor, slots: int) -> Tensor:
    """Positions of left-padded text, [B, slots]: pads 0, then 0, 1, 2, ..."""
    return (torch.arange(slots, device=text_length.device) - (slots - text_length[:, None])).clamp_(min=0)


class VideoLM(TokenModel):
    """Stage 1 (draws frames one after the other) or stage 2 (draws frames between given ones).

    `transformer`: a backbone to share; None builds one, as `device` says ("meta": without storage).
    """

    def __init__(
        self,
        config: ModelConfig,
        stage: Stage,
        transformer: Transformer | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__(config, transformer, device)
        self.stage: Stage = stage
        with torch.random.fork_rng(devices=[]), torch.device(device):
            self.add_mixin("extra_position_embedding", ExtraPositions(config.extra_positions, config.hidden))
            self.add_mixin("attention_plus", AttentionPlus(config, gated=True))
        if torch.device(device).type != "meta":
            self.get_mixin("attention_plus").reinit(self)

    def forward_training(self, text: Tensor, text_length: Tensor, frames: Tensor) -> Tensor:
        """Logits of every token of a clip, each given all that it may see.

        text [B, T] left-padded ids, text_length [B] (at least 1), frames [B, F, N] image tokens in time order
        -> [B, F, N, image_tokens] fp32; [b, f, k] scores token k of frame f.
        """
        batch, count, size = frames.shape
        if count != self.layout.frames or size != self.layout.tokens_per_frame:
            raise ValueError(
                f"frames {list(frames.shape)} do not fit {self.layout.frames} frames of {self.config.grid}"
            )
        pattern = ClipPattern.of(self.layout, self.stage, text_length, text.shape[1], self.dtype)
        logits = self._run(text, text_length, self.slots(frames).flatten(1), pattern)
        return logits.unflatten(1, (count, size))

    def forward_images(self, text: Tensor, text_length: Tensor, frames: Tensor) -> Tensor:
        """Text to image with the backbone alone: a single frame at the first frame's position.

        text [B, T] left-padded ids, text_length [B], frames [B, N] -> [B, N, image_tokens] fp32.
        """
        pattern = ImagePattern.of(self.layout, text_length, text.shape[1], self.dtype)
        return self._run(text, text_length, self.slots(frames), pattern)

    def _run(self, text: Tensor, text_length: Tensor, slots: Tensor, pattern: Pattern) -> Tensor:
        """text [B, T], slots [B, S] of frames in time order -> logits [B, S, image_tokens]."""
        layout, (batch, length) = self.layout, text.shape
        later = slots.shape[1] - layout.tokens_per_frame
        first = torch.as_tensor(layout.frame_positions(0), device=text.device)
        rows = torch.cat((first, torch.arange(later, device=text.device))).expand(batch, -1)
        logits: Tensor = self(
            torch.cat((text, slots), dim=1),
            torch.cat((text_positions(text_length, length), rows), dim=1),
            None,
            pattern=pattern,
            base_slots=length + layout.tokens_per_frame,
            first_output=length,
        )[0]
        return logits
