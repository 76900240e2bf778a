"""Common parts of the three networks: the backbone, extra positions, the head over the image tokens, guidance."""

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
"""Logit of a token that is never sampled. It is finite, since infinite logits are reported as damage."""


def left_pad(
    texts: Sequence[Sequence[int]], slots: int | None = None, pad: int = 0, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Pad the ids of several texts on the left; return text [B, slots] and text_length [B].

    `slots` None: the length of the longest text. Raises ValueError if a text is empty or too long.
    """
    lengths = [len(text) for text in texts]
    slots = max(lengths) if slots is None else slots
    if min(lengths) < 1 or max(lengths) > slots:
        raise ValueError(f"texts of {lengths} tokens do not fit {slots} slots; each needs at least one")
    rows = [[pad] * (slots - len(text)) + list(text) for text in texts]
    return torch.tensor(rows, device=device), torch.tensor(lengths, device=device)


class ExtraPositions(BaseMixin):
    """The position table for positions beyond the backbone's table."""

    def __init__(self, rows: int, hidden: int) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(rows, hidden)
        if not self.position_embeddings.weight.is_meta:
            nn.init.normal_(self.position_embeddings.weight, std=INIT_STD)

    def position_embedding_forward(self, position_ids: Tensor, *, base_slots: int, **_: Any) -> Tensor:
        """Embed `position_ids` [B or 1, S]: the first `base_slots` with the backbone's table, the rest with ours."""
        base, extra = position_ids[:, :base_slots], position_ids[:, base_slots:]
        parts = (self.transformer.position_embeddings(base), self.position_embeddings(extra))
        return parts[0] if not extra.shape[1] else parts[1] if not base.shape[1] else torch.cat(parts, dim=1)


class TokenModel(BaseModel):
    """A network on the backbone.

    `transformer`: a backbone to share. None: a new one on `device` ("meta": without storage).
    """

    def __init__(self, config: ModelConfig, transformer: Transformer | None, device: str | torch.device) -> None:
        backbone = build_transformer(config, device) if transformer is None else transformer
        super().__init__(sat_arguments(config), transformer=backbone)
        self.config = config
        self.layout = TokenLayout(config)
        self.full_head: Tensor | None = None  # see `cache_fp32_heads`

    @property
    def dtype(self) -> torch.dtype:
        weight: Tensor = self.transformer.word_embeddings.weight
        return weight.dtype

    @property
    def head(self) -> Tensor:
        """The output matrix [image_tokens, h]; in fp32 after `cache_fp32_heads`."""
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
        """Compute the fp32 logits of the `scored` positions: [B, S, h] -> [B, positions, image_tokens].

        With `guidance` they are guided, see `guided_logits`.
        """
        return guided_logits(hidden[:, scored], guidance, self._logits)

    def _logits(self, hidden: Tensor) -> Tensor:
        # Autocast may lower the precision of this product, which is a sixth of the work of training a small model.
        return F.linear(hidden.float(), self.head.float()).float()

    def slots(self, frames: Tensor) -> Tensor:
        """Return the inputs of the slots of tokens [..., N]: `<start_of_image>`, then all tokens but the last."""
        start = torch.full_like(frames[..., :1], self.config.start_of_image)
        return torch.cat((start, frames[..., :-1]), dim=-1)


def cache_fp32_heads(networks: Sequence[TokenModel]) -> None:
    """Store the heads in fp32, the precision of the logits, instead of casting them at every decoding step.

    Networks with a common head share the copy. Later changes of the weights have no effect.
    """
    heads: dict[int, Tensor] = {}
    for network in networks:
        if network.dtype != torch.float32:
            address = network.head.data_ptr()
            if address not in heads:
                heads[address] = network.head.detach().float()
            network.full_head = heads[address]


class GuidanceConfig(NamedTuple):
    """Parameters of classifier-free guidance."""

    weight: float
    """Guidance scale: logits are u + weight * (c - u), with c conditional and u unconditional."""
    plausibility: float = 0.0
    """See `TokenSampling`."""


def guided_logits(hidden: Tensor, guidance: GuidanceConfig | None, scores: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute guided fp32 logits [B, S, image_tokens] from states [2B, S, h], conditional rows first.

    `guidance` None: the logits of all rows. `scores`, the head, is linear. It is therefore applied to the guided
    states, which are half as many rows.
    """
    if guidance is None:
        return scores(hidden)
    with_text, without = hidden.float().chunk(2)
    logits = scores(torch.lerp(without, with_text, guidance.weight))
    if guidance.plausibility == 0:
        return logits
    conditional = scores(with_text)
    threshold = conditional.amax(-1, keepdim=True) + math.log(guidance.plausibility)
    return logits.masked_fill(conditional < threshold, IMPLAUSIBLE)


def text_positions(text_length: Tensor, slots: int) -> Tensor:
    """Return the positions of left-padded text, [B, slots]: 0 for padding, then 0, 1, 2, ..."""
    return (torch.arange(slots, device=text_length.device) - (slots - text_length[:, None])).clamp_(min=0)
