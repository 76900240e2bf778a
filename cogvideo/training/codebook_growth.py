"""Codes that are added to a trained codec, and the embeddings that networks begin with for them.

Encoder, decoder and old codes stay. An image that the old codes reproduce well keeps its tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.training.kmeans import add_seeds, lloyd, nearest
from cogvideo.training.vqvae_data import SUBJECT_OPACITY, ImageOptions
from cogvideo.training.vqvae_task import ImageTask, encode


@dataclass(frozen=True)
class CodebookGrowthOptions(ImageOptions):
    """How many codes are added, and from which vectors. Raises RequestError for numbers out of range."""

    more: int = 1024
    """Codes to add."""
    vectors: int = 240_000
    """Patches whose vectors are clustered; only those of subjects if subjects are marked."""
    rounds: int = 8
    """Rounds of k-means."""

    def __post_init__(self) -> None:
        if not 0 < self.more <= self.vectors or self.rounds < 0:
            raise RequestError(
                *message("codebook_growth.data_out_of_range", more=self.more, vectors=self.vectors, rounds=self.rounds)
            )


def grow_codebook(model: ModelConfig, more: int) -> ModelConfig:
    """Return the sizes of a model with `more` codes than this one. Ids of text tokens move up by as many."""
    return replace(
        model,
        image_tokens=model.image_tokens + more,
        vocab_size=model.vocab_size + more,
        start_of_image=model.start_of_image + more,
    )


class CodeSearch(ImageTask):
    """Search for the codes that a trained codec lacks for the images of `sample`."""

    options: CodebookGrowthOptions

    def codebook(self) -> Tensor:
        """Return the codec's codes and the new ones after them, [n + more, z]."""
        codes = self.codec.quantize.embed.weight.detach()
        o = self.options
        return add_codes(codes, self.vectors(), o.more, self.seed, o.rounds)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """Encode patches of sampled images, float [options.vectors, z].

        If subjects are marked, only patches of subjects on a plain ground count: networks learn those tokens.
        """
        parts: list[Tensor] = []
        while sum(map(len, parts)) < self.options.vectors:
            pixels, masks = self.sample_images(np.random.default_rng((self.seed, len(parts))))
            z = encode(self.codec, pixels)  # [B, z, h, w]
            is_subject = F.max_pool2d(masks, pixels.shape[-1] // z.shape[-1])[:, 0] > SUBJECT_OPACITY  # [B, h, w]
            if masks.any():
                z, is_subject = (torch.cat([plain for _, plain in self.pairs(v)]) for v in (z, is_subject))
            else:
                is_subject = torch.ones_like(is_subject)
            parts.append(z.permute(0, 2, 3, 1)[is_subject])
        return torch.cat(parts)[: self.options.vectors]


@torch.no_grad()
def add_codes(codes: Tensor, vectors: Tensor, more: int, seed: int = 0, rounds: int = 8) -> Tensor:
    """Add `more` codes where the codes [n, z] are far from `vectors` [m, z]: returns [n + more, z].

    New codes are seeded by k-means++ and moved by k-means. Old codes take part in it but stay.
    """
    seeded = add_seeds(vectors, codes, more, torch.Generator().manual_seed(seed))
    return lloyd(vectors, seeded, rounds, fixed=len(codes))


def grow_embeddings(embeddings: Tensor, codes: Tensor, model: ModelConfig) -> Tensor:
    """Add word embeddings for new codes: [V, h] of the smaller model -> [model.vocab_size, h].

    `codes` are all codes of the larger model. A new code gets the embedding of its nearest old code; old codes, text
    and special tokens keep theirs.
    """
    old = embeddings.shape[0] - (model.vocab_size - model.image_tokens)
    twins = nearest(codes[old:], codes[:old])
    return torch.cat([embeddings[:old], embeddings[:old][twins], embeddings[old:]])
