"""Training of the VQ-VAE's decoder alone: encoder and codebook stay, so that every token keeps its meaning and the
networks that draw tokens need not learn anew.

What the decoder will be given was drawn by networks, which err. So some tokens are spoilt on the way, and the picture
that is asked for stays the true one: the tokens around a wrong one tell what should be there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.training.vqvae_data import SHOWN, ImageOptions, Sample, denormalise
from cogvideo.training.vqvae_task import ImageTask, encode, nearest, picture_error


@dataclass(frozen=True)
class DecoderOptions(ImageOptions):
    """How the decoder is trained."""

    wrong: float = 0.03
    """Mean share of tokens that are replaced, half of them by a code that lies near, half by another picture's."""
    near: int = 8
    """How many codes count as near."""


class DecoderTask(ImageTask):
    """Loss of the decoder for the training loop; `codec` is trained."""

    options: DecoderOptions

    def __init__(self, codec: Any, sample: Sample, options: DecoderOptions, seed: int) -> None:
        super().__init__(codec, sample, options, seed)
        for part in (codec.enc, codec.down_samplers, codec.quantize):
            part.requires_grad_(False)
        codes = codec.quantize.embed.weight
        self.near = torch.cdist(codes, codes).topk(options.near + 1, largest=False).indices[:, 1:]  # [n, near]

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Weighted squared error of pictures decoded from spoilt tokens; every share holds `options` frames.

        Where subjects are marked, every other picture is decoded with the tokens that its subject has before a plain
        ground, which is what the networks learn to draw.
        """
        o = self.options
        rng = np.random.default_rng((self.seed, micro_batch, step))
        pixels, masks = self.draw(rng)
        tokens = self._tokens(pixels)
        if masks.any():
            shown = F.max_pool2d(masks, pixels.shape[-1] // tokens.shape[-1])[:, 0] > SHOWN  # [B, h, w]
            tokens, pixels = self.cut_out(tokens, shown), self.before_scenes(pixels)
        return picture_error(self._decode(self.corrupt(tokens, rng)), pixels, masks, o)

    @torch.no_grad()
    def preview_image(self) -> npt.NDArray[np.uint8]:
        """Eight small frames above their reconstructions from sound tokens, and those from spoilt ones."""
        rng = np.random.default_rng(self.seed)
        pixels, _ = self.draw(rng)
        tokens = self._tokens(pixels)
        spoilt = self.corrupt(tokens, rng)
        rows = [denormalise(p[:8]) for p in (pixels, self._decode(tokens[:8]), self._decode(spoilt[:8]))]
        return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])

    def corrupt(self, tokens: Tensor, rng: np.random.Generator) -> Tensor:
        """Tokens int64 [B, h, w] -> the same with some of them replaced."""
        count = len(tokens)
        rates = rng.uniform(0, 2 * self.options.wrong, (count, 1, 1))
        kind = rng.random(tuple(tokens.shape))
        near = self.near[tokens, _like(rng.integers(self.options.near, size=tuple(tokens.shape)), tokens)]
        strange = tokens.roll(int(rng.integers(1, max(2, count))), 0)
        tokens = torch.where(_like(kind < rates / 2, tokens), near, tokens)
        return torch.where(_like(kind > 1 - rates / 2, tokens), strange, tokens)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [B, 3, H, W] -> tokens [B, h, w]."""
        with torch.no_grad():
            z = encode(self.codec, pixels)  # [B, z, h, w]
        return nearest(z.permute(0, 2, 3, 1).flatten(0, 2), self.codec.quantize.embed.weight).view(-1, *z.shape[2:])

    def _decode(self, tokens: Tensor) -> Tensor:
        """Tokens [B, h, w] -> normalised pixels [B, 3, H, W]."""
        pixels: Tensor = self.codec.decs[1](self.codec.quantize.embed.weight[tokens].permute(0, 3, 1, 2))
        return pixels


def _like(values: npt.NDArray[Any], tokens: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(tokens.device)
