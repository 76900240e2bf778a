"""Training of the VQ-VAE: frames at both sizes -> encoder, codebook and decoder, `codec.*` of a model's folder.

One codebook serves the small frames and the super-resolved ones, as in the published model, so a batch holds whole
small frames and crops of large ones. The codebook follows the encoder by exponential moving averages (van den Oord et
al. 2017, appendix A.1), starts from k-means and moves unused codes to where the encoder's output is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.training.vqvae_data import SHOWN, STD, ImageOptions, Sample, denormalise, normalise


@dataclass(frozen=True)
class VQVAEOptions(ImageOptions):
    """How the codec is trained; the defaults made the shipped one."""

    warmup_steps: int = 200
    """Steps without quantisation; then k-means makes the codebook."""
    restart_every: int = 50
    decay: float = 0.98
    commitment: float = 0.25
    consistency: float = 0.0
    """Over 0, where subjects are marked: frames come in pairs, one before its scene, the other before a plain ground.
    The first is decoded from its own tokens, and once more with the plain one's where the subject is; its vectors are
    drawn to those of the second with this weight. A token then tells of the subject, and the decoder finds the scene
    behind its edges in the tokens beside it: fewer codes, and the subject is the same to the transformer in every
    scene."""
    consistency_from: int = 0
    """First step of it. A codec that reproduces pictures well adapts within minutes; from nothing it takes an hour."""


class ImageTask:
    """What training of codec and decoder have in common; `codec` is icetk's HVQVAE, used at level 1 alone."""

    def __init__(self, codec: Any, sample: Sample, options: ImageOptions, seed: int) -> None:
        self.codec = codec
        self.sample = sample
        self.options = options
        self.seed = seed

    @property
    def module(self) -> nn.Module:
        codec: nn.Module = self.codec
        return codec

    @property
    def trainable(self) -> nn.Module:
        return self.module

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Normalised pixels [B, 3, H, W] and subject masks [B, 1, H, W]."""
        pixels, masks = self.sample(rng, self.options)
        device = self.codec.quantize.embed.weight.device
        return normalise(pixels).to(device), torch.from_numpy(masks).unsqueeze(1).to(device)

    def pairs(self, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A batch [B, ...] -> of each kind of picture those before their scenes, and the same before a plain ground."""
        o = self.options
        small, fine = values.split([o.small_frames, o.fine_crops])
        return [tuple(small.chunk(2)), tuple(fine.chunk(2))]

    def before_scenes(self, values: Tensor) -> Tensor:
        """A batch [B, ...] with what belongs to pictures before scenes at both places of every pair."""
        return torch.cat([part for own, _ in self.pairs(values) for part in (own, own)])

    def cut_out(self, values: Tensor, shown: Tensor) -> Tensor:
        """Tokens or vectors [B, ..., h, w] -> a pair's first: its own; its second: its own around the subject, and what
        the subject has before the plain ground where it is `shown` (bool, of a shape that spreads to that of values).
        """
        both = zip(self.pairs(values), self.pairs(shown), strict=True)
        return torch.cat([part for (own, plain), (at, _) in both for part in (own, torch.where(at, plain, own))])


class VQVAETask(ImageTask):
    """Loss of the codec for the training loop."""

    options: VQVAEOptions

    def __init__(self, codec: Any, sample: Sample, options: VQVAEOptions, seed: int) -> None:
        super().__init__(codec, sample, options, seed)
        codec.quantize.register_buffer("usage", torch.zeros(codec.quantize.n_embed), persistent=False)
        # The codebook follows by averages, and the level above is not used: neither has gradients.
        codec.quantize.embed.weight.requires_grad_(False)

    def batch(self, step: int, micro_batch: int = 0) -> tuple[Tensor, Tensor]:
        """Pixels and masks of a share of step `step`, as `draw` gives them."""
        return self.draw(np.random.default_rng((self.seed, micro_batch, step)))

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Weighted squared error of the reconstruction, plus the commitment of the encoder to its codes.

        Every share holds as many frames as the options say: more processes see more.
        """
        o = self.options
        pixels, masks = self.batch(step, micro_batch)
        vectors = z = encode(self.codec, pixels)
        regular = z.new_zeros(())  # what is asked of the vectors beside a good picture
        if step >= o.warmup_steps:
            if step == o.warmup_steps:
                self._init_kmeans(step)
            z, commitment = self._quantise(z, step)
            regular = regular + o.commitment * commitment
        if o.consistency and step >= o.consistency_from and masks.any():
            shown = F.max_pool2d(masks, pixels.shape[-1] // z.shape[-1]) > SHOWN  # [B, 1, h, w]
            regular = regular + o.consistency * self._difference(vectors, shown)
            z, pixels = self.cut_out(z, shown), self.before_scenes(pixels)
        loss, figures = picture_error(self.codec.decs[1](z), pixels, masks, o)
        used = float((self.codec.quantize.usage > 0.05).float().mean())
        return loss + regular, figures | {"used": used}

    def _quantise(self, z: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Vectors [B, z, h, w] -> their codes, with the vectors' gradients; how far the vectors are from them."""
        embedding = self.codec.quantize.embed.weight
        flat = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        ids = nearest(flat, embedding)
        codes = embedding[ids].view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        commitment = F.mse_loss(z, codes)
        self._ema_update(flat, ids, step)
        return z + (codes - z).detach(), commitment

    def _difference(self, vectors: Tensor, shown: Tensor) -> Tensor:
        """How far vectors [B, z, h, w] are from their plain twins' where `shown` [B, 1, h, w], in variances."""
        own, plain = (torch.cat([pair[i].flatten(2) for pair in self.pairs(vectors)], 0) for i in (0, 1))
        at = torch.cat([one.flatten(2) for one, _ in self.pairs(shown)])
        square = (own - plain).square().mean(1, keepdim=True)
        return (square * at).sum() / at.sum().clamp(min=1) / vectors.detach().var()

    @torch.no_grad()
    def preview_image(self) -> npt.NDArray[np.uint8]:
        """Eight small frames above their reconstructions."""
        pixels = self.batch(0)[0][:8]
        z = encode(self.codec, pixels)
        codes = self.codec.quantize.embed.weight
        quantised = codes[nearest(z.permute(0, 2, 3, 1).flatten(0, 2), codes)].view(len(z), *z.shape[2:], -1)
        rows = [denormalise(p) for p in (pixels, self.codec.decs[1](quantised.permute(0, 3, 1, 2)))]
        return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])

    @torch.no_grad()
    def _init_kmeans(self, step: int) -> None:
        """k-means over the encoder's output of a few fresh batches, the same in every process."""
        vectors = []
        for extra in range(10):
            z = encode(self.codec, self.batch(10_000_000 + step + extra)[0])
            vectors.append(z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]))
        points = torch.unique(torch.cat(vectors), dim=0)
        generator = torch.Generator().manual_seed(self.seed)
        wanted = self.codec.quantize.n_embed
        chosen = torch.randperm(max(wanted, len(points)), generator=generator)[:wanted] % len(points)
        centres = points[chosen.to(points.device)].clone()
        for _ in range(8):
            ids = nearest(points, centres)
            counts = torch.bincount(ids, minlength=len(centres)).unsqueeze(1)
            sums = torch.zeros_like(centres).index_add_(0, ids, points)
            centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
        quantize = self.codec.quantize
        quantize.embed.weight.copy_(centres)
        quantize.cluster_size.fill_(1.0)
        quantize.embed_avg.copy_(centres)
        self.codec.quantize.usage.fill_(1.0)

    @torch.no_grad()
    def _ema_update(self, flat: Tensor, ids: Tensor, step: int) -> None:
        """Move the codes to the average of their vectors; move codes that nothing chose to random vectors."""
        o, quantize = self.options, self.codec.quantize
        counts = all_reduce_sum(torch.bincount(ids, minlength=quantize.n_embed).float())
        sums = all_reduce_sum(torch.zeros_like(quantize.embed.weight).index_add_(0, ids, flat))
        quantize.cluster_size.mul_(o.decay).add_(counts, alpha=1 - o.decay)
        quantize.embed_avg.mul_(o.decay).add_(sums, alpha=1 - o.decay)
        self.codec.quantize.usage.mul_(0.995).add_(counts, alpha=0.005)
        quantize.embed.weight.copy_(quantize.embed_avg / quantize.cluster_size.clamp(min=1e-5).unsqueeze(1))
        if step % o.restart_every == 0:
            self._expire_codes(flat, ids)

    def _expire_codes(self, flat: Tensor, ids: Tensor) -> None:
        """Give unused codes the vectors that are worst served."""
        quantize = self.codec.quantize
        dead = (quantize.cluster_size < 0.01).nonzero().squeeze(1)
        distance = (flat - quantize.embed.weight[ids]).square().sum(1)
        vectors = broadcast_from_rank0(flat[distance.topk(min(len(dead), len(flat) // 8)).indices])
        dead = dead[: len(vectors)]
        quantize.embed.weight[dead] = vectors
        quantize.embed_avg[dead] = vectors * 0.2
        quantize.cluster_size[dead] = 0.2
        self.codec.quantize.usage[dead] = 0.1


def picture_error(
    decoded: Tensor, pixels: Tensor, masks: Tensor, options: ImageOptions
) -> tuple[Tensor, dict[str, float]]:
    """Squared error of normalised pictures [B, 3, H, W], weighted by subject masks [B, 1, H, W]; PSNR in dB by size."""
    error = (decoded - pixels).square()
    small, fine = masks.split([options.small_frames, options.fine_crops])
    counts = torch.cat([weigh_by_size(small, options.size_power), fine])  # a crop does not tell of the size
    loss = (error * (options.background_weight + options.subject_weight * counts)).mean()
    scaled = error.detach() * error.new_tensor(STD).view(1, 3, 1, 1).square()
    parts = scaled.split([options.small_frames, options.fine_crops])
    psnr = [float(-10 * torch.log10(part.mean())) for part in parts]
    return loss, {"psnr_small": psnr[0], "psnr_fine": psnr[1]}


def weigh_by_size(masks: Tensor, power: float) -> Tensor:
    """Subject masks [B, 1, H, W] -> the same, each times (mean area of all / its own area) ** power."""
    areas = masks.mean((1, 2, 3), keepdim=True)  # [B, 1, 1, 1]
    shown = areas > 0
    if power == 0 or not shown.any():
        return masks
    return masks * (areas[shown].mean() / areas.clamp(min=1e-3)) ** power


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all processes, so that every one keeps the same codebook."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def broadcast_from_rank0(values: Tensor) -> Tensor:
    """The first process's values; all have as many."""
    values = values.contiguous()
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(values, 0)
    return values


def encode(codec: Any, pixels: Tensor) -> Tensor:
    """Normalised pixels [B, 3, H, W] -> vectors before quantisation [B, z, h, w].

    In single precision whatever the rest computes in: which code is nearest hangs on small differences.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        z: Tensor = codec.quantize.proj(codec.down_samplers[0](codec.enc(pixels)))
    return z


@torch.no_grad()
def tokenise(codec: Any, pixels: npt.NDArray[Any]) -> Tensor:
    """Frames uint8 [B, H, W, 3] -> tokens [B, N], as `FrameCodec.encode` does, without its one-hot matrices."""
    z = encode(codec, normalise(pixels).to(codec.quantize.embed.weight.device))
    flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    return nearest(flat, codec.quantize.embed.weight).view(len(pixels), -1)


def nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the closest code [n] of every vector [n, z], in pieces that stay in the cache."""
    half = 0.5 * codes.square().sum(1)
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.cat([(part @ codes.t() - half).argmax(1) for part in vectors.split(2048)])
