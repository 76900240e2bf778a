"""More codes for a trained codec, where those it has are far from what it sees; encoder and decoder stay.

The codes that are there stay as well, so a picture that they show well keeps its tokens, and networks that draw these
tokens go on from what they know: a new code begins, to them, as the old one that is nearest to it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.errors import RequestError
from cogvideo.training.vqvae_data import SHOWN, ImageOptions
from cogvideo.training.vqvae_task import ImageTask, encode, nearest

SEEDINGS = 6
"""Parts in which new codes are chosen; each part sees what those before it left far away."""
OUTLIER = 4.0
"""Mean squared distances from which on a vector's chance of becoming a code grows no more."""


@dataclass(frozen=True)
class CodebookGrowthOptions(ImageOptions):
    """How many codes are added, and what they are to show. Raises RequestError for numbers that make no codes."""

    more: int = 1024
    vectors: int = 240_000
    """Patches that are looked at: of subjects alone where these are marked."""
    rounds: int = 8
    """Of k-means, in which the new codes move to the middle of what is nearest to them."""

    def __post_init__(self) -> None:
        if not 0 < self.more <= self.vectors or self.rounds < 0:
            raise RequestError(
                f"[codes.data] 不可用：more（{self.more}）须为正数且不大于 vectors（{self.vectors}），"
                f"rounds（{self.rounds}）不小于 0。",
                f"[codes.data] cannot be used: more ({self.more}) must be positive and at most vectors "
                f"({self.vectors}), rounds ({self.rounds}) 0 or more.",
            )


def grow_codebook(model: ModelConfig, more: int) -> ModelConfig:
    """The sizes of a model whose codebook has `more` codes than this one's: text comes after them."""
    return replace(
        model,
        image_tokens=model.image_tokens + more,
        vocab_size=model.vocab_size + more,
        start_of_image=model.start_of_image + more,
    )


class CodeSearch(ImageTask):
    """Where new codes are wanted: `codec` is trained, `sample` says what it is shown."""

    options: CodebookGrowthOptions

    def codebook(self) -> Tensor:
        """The codec's codes, and after them the new ones: [n + more, z]."""
        codes = self.codec.quantize.embed.weight.detach()
        o = self.options
        return add_codes(codes, self.vectors(), o.more, self.seed, o.rounds)

    @torch.no_grad()
    def vectors(self) -> Tensor:
        """What the encoder makes of as many patches as the options say, [vectors, z].

        Where subjects are marked, of patches that show some of one before a plain ground, which is what the networks
        learn to draw.
        """
        parts: list[Tensor] = []
        while sum(map(len, parts)) < self.options.vectors:
            pixels, masks = self.draw(np.random.default_rng((self.seed, len(parts))))
            z = encode(self.codec, pixels)  # [B, z, h, w]
            shown = F.max_pool2d(masks, pixels.shape[-1] // z.shape[-1])[:, 0] > SHOWN  # [B, h, w]
            if masks.any():
                z, shown = (torch.cat([plain for _, plain in self.pairs(values)]) for values in (z, shown))
            else:
                shown = torch.ones_like(shown)
            parts.append(z.permute(0, 2, 3, 1)[shown])
        return torch.cat(parts)[: self.options.vectors]


@torch.no_grad()
def add_codes(codes: Tensor, vectors: Tensor, more: int, seed: int = 0, rounds: int = 8) -> Tensor:
    """Codes [n, z] -> the same, and `more` of them [n + more, z] where the nearest code is far from `vectors` [m, z].

    New ones are drawn from the vectors by their distance (k-means++, Arthur and Vassilvitskii 2007, several at once),
    then moved by k-means in which the old ones take part but stay.
    """
    generator = torch.Generator().manual_seed(seed)
    every = codes
    for part in torch.arange(more).chunk(SEEDINGS):
        far = _squared_distance(vectors, every)[1]
        odds = far.clamp(max=OUTLIER * float(far.mean())) + 1e-12
        every = torch.cat([every, vectors[torch.multinomial(odds.cpu(), len(part), generator=generator)]])
    for _ in range(rounds):
        ids, _ = _squared_distance(vectors, every)
        counts = torch.bincount(ids, minlength=len(every)).unsqueeze(1)
        middle = torch.zeros_like(every).index_add_(0, ids, vectors) / counts.clamp(min=1)
        moved = torch.where(counts > 0, middle, every)
        every = torch.cat([codes, moved[len(codes) :]])
    return every


def _squared_distance(vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the code that is nearest to each vector [m], and its squared distance [m]."""
    ids = nearest(vectors, codes)
    return ids, (vectors - codes[ids]).square().sum(1)


def grow_embeddings(embeddings: Tensor, codes: Tensor, model: ModelConfig) -> Tensor:
    """Word embeddings [V, h] of a model of fewer codes -> those of a model with the sizes `model` and all `codes`.

    Old codes, text and special tokens keep theirs; a new code has that of the old one that is nearest to it.
    """
    old = embeddings.shape[0] - (model.vocab_size - model.image_tokens)
    twins = nearest(codes[old:], codes[:old])
    return torch.cat([embeddings[:old], embeddings[:old][twins], embeddings[old:]])
