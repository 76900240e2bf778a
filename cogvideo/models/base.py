"""What the three networks have in common: a backbone, perhaps shared, extra positions, a head over the image tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.config import ModelConfig
from cogvideo.models.attention import INIT_STD, linear
from cogvideo.models.sat_adapter import BaseMixin, BaseModel, Transformer, build_transformer, sat_arguments
from cogvideo.token_layout import TokenLayout

IMPLAUSIBLE: Final = -1e4
"""Score of a token that is never drawn: finite, as scores that are not are taken for damage."""


def left_pad(
    texts: Sequence[Sequence[int]], slots: int | None = None, pad: int = 0, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Ids of several texts -> text [B, slots] with `pad` on the left, text_length [B].

    `slots` None: as many as the longest text has. Raises ValueError for a text that is empty or too long.
    """
    lengths = [len(text) for text in texts]
    slots = max(lengths) if slots is None else slots
    if min(lengths) < 1 or max(lengths) > slots:
        raise ValueError(f"texts of {lengths} tokens do not fit {slots} slots; each needs at least one")
    rows = [[pad] * (slots - len(text)) + list(text) for text in texts]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)


class ExtraPositions(BaseMixin):
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


class TokenModel(BaseModel):
    """A network on the backbone. `transformer`: one to share; None builds one on `device` ("meta": without storage)."""

    def __init__(self, config: ModelConfig, transformer: Transformer | None, device: str | torch.device) -> None:
        backbone = build_transformer(config, device) if transformer is None else transformer
        super().__init__(sat_arguments(config), transformer=backbone)
        self.config = config
        self.layout = TokenLayout(config)
        self.full_head: Tensor | None = None  # see `keep_heads`

    @property
    def dtype(self) -> torch.dtype:
        weight: Tensor = self.transformer.word_embeddings.weight
        return weight.dtype

    @property
    def head(self) -> Tensor:
        """[image_tokens, h]: states times this are the logits. In full precision where that is kept."""
        if self.full_head is not None:
            return self.full_head
        weight: Tensor = self.transformer.word_embeddings.weight
        return weight[: self.config.image_tokens]

    def word_embedding_forward(self, input_ids: Tensor, **_: Any) -> Tensor:
        return F.embedding(input_ids, self.transformer.word_embeddings.weight)

    def mlp_forward(self, hidden_states: Tensor, *, layer_id: Tensor | int, **_: Any) -> Tensor:
        mlp = self.transformer.layers[int(layer_id)].mlp
        return linear(mlp.dense_4h_to_h, F.gelu(linear(mlp.dense_h_to_4h, hidden_states), approximate="tanh"))

    def final_forward(
        self, hidden: Tensor, *, scored: Tensor | slice, guidance: GuidanceConfig | None = None, **_: Any
    ) -> Tensor:
        """Logits of the `scored` places: [B, S, h] -> [B, places, image_tokens], fp32, as `guided_scores` has them."""
        return guided_logits(hidden[:, scored], guidance, self._logits)

    def _logits(self, hidden: Tensor) -> Tensor:
        # Under autocast the product is in its precision: a sixth of the work of training a small model.
        return F.linear(hidden.float(), self.head.float()).float()

    def slots(self, frames: Tensor) -> Tensor:
        """Tokens [..., N] -> what their slots hold: `<start_of_image>`, then all tokens but the last."""
        start = torch.full_like(frames[..., :1], self.config.start_of_image)
        return torch.cat((start, frames[..., :-1]), dim=-1)


def cache_fp32_heads(networks: Sequence[TokenModel]) -> None:
    """For drawing: the heads are kept in full precision, in which logits are computed, instead of cast at every step.

    Networks that share theirs share this one. Later changes of the weights are not seen.
    """
    heads: dict[int, Tensor] = {}
    for network in networks:
        if network.dtype != torch.float32:
            place = network.head.data_ptr()
            if place not in heads:
                heads[place] = network.head.detach().float()
            network.full_head = heads[place]


class GuidanceConfig(NamedTuple):
    """How rows with a prompt are led away from rows without."""

    weight: float
    """Scores are u + weight * (c - u): c with the prompt, u without."""
    plausibility: float = 0.0
    """See `TokenSampling`."""


def guided_logits(hidden: Tensor, guidance: GuidanceConfig | None, scores: Callable[[Tensor], Tensor]) -> Tensor:
    """States [2B, S, h], conditional rows first -> guided logits [B, S, image_tokens] fp32; None: `hidden`'s own.

    `scores` is linear: its product with the guided states is the guided logits, for half the rows.
    """
    if guidance is None:
        return scores(hidden)
    with_text, without = hidden.float().chunk(2)
    logits = scores(torch.lerp(without, with_text, guidance.weight))
    if guidance.plausibility == 0:
        return logits
    plain = scores(with_text)
    least = plain.amax(-1, keepdim=True) + math.log(guidance.plausibility)
    return logits.masked_fill(plain < least, IMPLAUSIBLE)


def text_positions(text_length: Tensor, slots: int) -> Tensor:
    """Positions of left-padded text, [B, slots]: pads 0, then 0, 1, 2, ..."""
    return (torch.arange(slots, device=text_length.device) - (slots - text_length[:, None])).clamp_(min=0)
