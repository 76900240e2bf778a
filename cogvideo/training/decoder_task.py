"""Training of the VQ-VAE's decoder by itself. Encoder and codebook stay, so tokens keep their meaning.

At generation time the decoder reads tokens that networks sampled, with errors. In training, some tokens are therefore
replaced while the target stays the true image: the decoder learns to correct errors from the tokens around them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.training.kmeans import nearest
from cogvideo.training.vqvae_data import SUBJECT_OPACITY, ImageOptions, Sample, denormalise
from cogvideo.training.vqvae_task import ImageTask, encode, reconstruction_loss


@dataclass(frozen=True)
class DecoderOptions(ImageOptions):
    """How the decoder is trained."""

    corruption_rate: float = 0.03
    """Mean fraction of tokens that are replaced: half by a nearby code, half by another image's token."""
    near: int = 8
    """How many codes count as nearby."""


class DecoderTask(ImageTask):
    """Loss of the decoder for the training loop; `codec` is trained."""

    options: DecoderOptions

    def __init__(self, codec: Any, sample: Sample, options: DecoderOptions, seed: int) -> None:
        super().__init__(codec, sample, options, seed)
        for part in (codec.enc, codec.down_samplers, codec.quantize):
            part.requires_grad_(False)
        codes = codec.quantize.embed.weight
        self.neighbours = torch.cdist(codes, codes).topk(options.near + 1, largest=False).indices[:, 1:]  # [n, near]

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Compute the reconstruction loss of images decoded from corrupted tokens; PSNR in dB for the log.

        If subjects are marked, every other image is decoded with the tokens that its subject has on a plain ground:
        networks learn those tokens. Every micro-batch has as many images as the options say.
        """
        rng = np.random.default_rng((self.seed, micro_batch, step))
        pixels, masks = self.sample_images(rng)
        tokens = self._tokens(pixels)
        if masks.any():
            is_subject = F.max_pool2d(masks, pixels.shape[-1] // tokens.shape[-1])[:, 0] > SUBJECT_OPACITY  # [B, h, w]
            tokens, pixels = self.insert_plain_subjects(tokens, is_subject), self.repeat_scenes(pixels)
        return reconstruction_loss(self._decode(self.corrupt(tokens, rng)), pixels, masks, self.options)

    @torch.no_grad()
    def preview_image(self) -> npt.NDArray[np.uint8]:
        """Return up to eight small frames, their reconstructions, and those from corrupted tokens, in three rows."""
        rng = np.random.default_rng(self.seed)
        pixels, _ = self.sample_images(rng)
        tokens = self._tokens(pixels)
        corrupted = self.corrupt(tokens, rng)
        rows = [denormalise(p[:8]) for p in (pixels, self._decode(tokens[:8]), self._decode(corrupted[:8]))]
        return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])

    def corrupt(self, tokens: Tensor, rng: np.random.Generator) -> Tensor:
        """Replace some tokens int64 [B, h, w]. An image has up to twice the mean fraction."""
        count = len(tokens)
        rates = rng.uniform(0, 2 * self.options.corruption_rate, (count, 1, 1))
        draws = rng.random(tuple(tokens.shape))
        near = self.neighbours[tokens, _like(rng.integers(self.options.near, size=tuple(tokens.shape)), tokens)]
        foreign = tokens.roll(int(rng.integers(1, max(2, count))), 0)
        tokens = torch.where(_like(draws < rates / 2, tokens), near, tokens)
        return torch.where(_like(draws > 1 - rates / 2, tokens), foreign, tokens)

    def _tokens(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels [B, 3, H, W] to tokens [B, h, w]."""
        with torch.no_grad():
            z = encode(self.codec, pixels)  # [B, z, h, w]
        return nearest(z.permute(0, 2, 3, 1).flatten(0, 2), self.codec.quantize.embed.weight).view(-1, *z.shape[2:])

    def _decode(self, tokens: Tensor) -> Tensor:
        """Decode tokens [B, h, w] to normalised pixels [B, 3, H, W]."""
        pixels: Tensor = self.codec.decs[1](self.codec.quantize.embed.weight[tokens].permute(0, 3, 1, 2))
        return pixels


def _like(values: npt.NDArray[Any], tokens: Tensor) -> Tensor:
    """Return an array as a tensor on the device of `tokens`."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(tokens.device)
