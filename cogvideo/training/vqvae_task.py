"""Training of the VQ-VAE on small and large frames: encoder, codebook and decoder.

One codebook serves both sizes, as in the published model: a batch holds whole small frames and crops of large ones. The
codebook is initialised by k-means and follows the encoder by exponential moving averages (van den Oord et al. 2017,
appendix A.1). Unused codes are replaced by vectors of the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.tokenizers.image import STD
from cogvideo.training.kmeans import cluster_sums, lloyd, nearest, sample_seeds
from cogvideo.training.vqvae_data import SUBJECT_OPACITY, ImageOptions, Sample, denormalise, normalise

KMEANS_BATCHES: Final = 10
KMEANS_FIRST_STEP: Final = 10_000_000
"""Step from which the batches of k-means are numbered: training never reaches it."""
KMEANS_ROUNDS: Final = 8


@dataclass(frozen=True)
class VQVAEOptions(ImageOptions):
    """How the codec is trained. The defaults are those of the shipped codec."""

    warmup_steps: int = 200
    """Steps without quantisation, before k-means initialises the codebook."""
    restart_every: int = 50
    """Steps between two replacements of unused codes."""
    decay: float = 0.98
    """Decay of the moving averages of the codebook."""
    commitment: float = 0.25
    """Weight of the commitment loss."""
    consistency: float = 0.0
    """Weight of the consistency loss, for images with marked subjects; 0 switches it off.

    Such images come in pairs: a subject in its scene, and the same subject on a plain ground. The loss draws the
    vectors of the first to those of the second. The first is also decoded with the second's tokens for the subject. A
    subject then has the same tokens in every scene, and the decoder reads the scene from the tokens around it."""
    consistency_from: int = 0
    """First step of the consistency loss. A trained codec adapts in minutes; from the start it takes an hour."""


class ImageTask:
    """What the training of codec and decoder share. `codec` is icetk's HVQVAE, of which level 1 is used."""

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

    def sample_images(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Sample normalised pixels [B, 3, H, W] and subject masks [B, 1, H, W]."""
        pixels, masks = self.sample(rng, self.options)
        device = self.codec.quantize.embed.weight.device
        return normalise(pixels).to(device), torch.from_numpy(masks).unsqueeze(1).to(device)

    def pairs(self, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Split a batch [B, ...] into (in its scene, on a plain ground), for small frames and for crops."""
        o = self.options
        small, fine = values.split([o.small_frames, o.fine_crops])
        return [tuple(small.chunk(2)), tuple(fine.chunk(2))]

    def repeat_scenes(self, values: Tensor) -> Tensor:
        """Return a batch [B, ...] in which both halves of every pair are the one in its scene."""
        return torch.cat([part for scene, _ in self.pairs(values) for part in (scene, scene)])

    def insert_plain_subjects(self, values: Tensor, is_subject: Tensor) -> Tensor:
        """Return tokens or vectors [B, ..., h, w] of pairs: first the scene's, then the scene's with a plain subject.

        The second takes the values of the plain ground if `is_subject` (bool, broadcast to `values`).
        """
        both = zip(self.pairs(values), self.pairs(is_subject), strict=True)
        return torch.cat([part for (scene, plain), (at, _) in both for part in (scene, torch.where(at, plain, scene))])


class VQVAETask(ImageTask):
    """Loss of the codec for the training loop."""

    options: VQVAEOptions

    def __init__(self, codec: Any, sample: Sample, options: VQVAEOptions, seed: int) -> None:
        super().__init__(codec, sample, options, seed)
        codec.quantize.register_buffer("usage", torch.zeros(codec.quantize.n_embed), persistent=False)
        # The codebook follows by averages and the level above is unused: neither has gradients.
        codec.quantize.embed.weight.requires_grad_(False)

    def batch(self, step: int, micro_batch: int = 0) -> tuple[Tensor, Tensor]:
        """Sample pixels and masks of a micro-batch of step `step`, as `sample_images` returns them."""
        return self.sample_images(np.random.default_rng((self.seed, micro_batch, step)))

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Compute the reconstruction loss, the commitment loss and the consistency loss; PSNR in dB for the log.

        Every micro-batch has as many images as the options say, so more processes mean more images in a step.
        """
        o = self.options
        pixels, masks = self.batch(step, micro_batch)
        vectors = z = encode(self.codec, pixels)
        regularisation = z.new_zeros(())
        if step >= o.warmup_steps:
            if step == o.warmup_steps:
                self._init_kmeans(step)
            z, commitment = self._quantise(z, step)
            regularisation = regularisation + o.commitment * commitment
        if o.consistency and step >= o.consistency_from and masks.any():
            is_subject = F.max_pool2d(masks, pixels.shape[-1] // z.shape[-1]) > SUBJECT_OPACITY  # [B, 1, h, w]
            regularisation = regularisation + o.consistency * self._consistency(vectors, is_subject)
            z, pixels = self.insert_plain_subjects(z, is_subject), self.repeat_scenes(pixels)
        loss, scalars = reconstruction_loss(self.codec.decs[1](z), pixels, masks, o)
        used = float((self.codec.quantize.usage > 0.05).float().mean())
        return loss + regularisation, scalars | {"used": used}

    def _quantise(self, z: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Replace vectors [B, z, h, w] by their codes, with straight-through gradients; returns the commitment too."""
        embedding = self.codec.quantize.embed.weight
        flat = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        ids = nearest(flat, embedding)
        codes = embedding[ids].view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        commitment = F.mse_loss(z, codes)
        self._ema_update(flat, ids, step)
        return z + (codes - z).detach(), commitment

    def _consistency(self, vectors: Tensor, is_subject: Tensor) -> Tensor:
        """Return the mean squared distance of subjects' vectors [B, z, h, w] to their plain twins', in variances."""
        scene, plain = (torch.cat([pair[i].flatten(2) for pair in self.pairs(vectors)], 0) for i in (0, 1))
        at = torch.cat([one.flatten(2) for one, _ in self.pairs(is_subject)])
        square = (scene - plain).square().mean(1, keepdim=True)
        return (square * at).sum() / at.sum().clamp(min=1) / vectors.detach().var()

    @torch.no_grad()
    def preview_image(self) -> npt.NDArray[np.uint8]:
        """Return up to eight small frames above their reconstructions."""
        pixels = self.batch(0)[0][:8]
        z = encode(self.codec, pixels)
        codes = self.codec.quantize.embed.weight
        quantised = codes[nearest(z.permute(0, 2, 3, 1).flatten(0, 2), codes)].view(len(z), *z.shape[2:], -1)
        rows = [denormalise(p) for p in (pixels, self.codec.decs[1](quantised.permute(0, 3, 1, 2)))]
        return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])

    @torch.no_grad()
    def _init_kmeans(self, step: int) -> None:
        """Initialise the codebook by k-means over fresh batches. All processes compute the same."""
        vectors = []
        for number in range(KMEANS_BATCHES):
            z = encode(self.codec, self.batch(KMEANS_FIRST_STEP + step + number)[0])
            vectors.append(z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]))
        points = torch.unique(torch.cat(vectors), dim=0)
        quantize = self.codec.quantize
        seeds = sample_seeds(points, quantize.n_embed, torch.Generator().manual_seed(self.seed))
        centres = lloyd(points, seeds, KMEANS_ROUNDS)
        quantize.embed.weight.copy_(centres)
        quantize.cluster_size.fill_(1.0)
        quantize.embed_avg.copy_(centres)
        quantize.usage.fill_(1.0)

    @torch.no_grad()
    def _ema_update(self, flat: Tensor, ids: Tensor, step: int) -> None:
        """Move the codes to the moving averages of their vectors, and replace unused codes from time to time."""
        o, quantize = self.options, self.codec.quantize
        counts, sums = cluster_sums(flat, ids, quantize.n_embed, all_reduce_sum)
        quantize.cluster_size.mul_(o.decay).add_(counts, alpha=1 - o.decay)
        quantize.embed_avg.mul_(o.decay).add_(sums, alpha=1 - o.decay)
        quantize.usage.mul_(0.995).add_(counts, alpha=0.005)
        quantize.embed.weight.copy_(quantize.embed_avg / quantize.cluster_size.clamp(min=1e-5).unsqueeze(1))
        if step % o.restart_every == 0:
            self._expire_codes(flat, ids)

    def _expire_codes(self, flat: Tensor, ids: Tensor) -> None:
        """Replace unused codes by the vectors that are farthest from their codes."""
        quantize = self.codec.quantize
        dead = (quantize.cluster_size < 0.01).nonzero().squeeze(1)
        distance = (flat - quantize.embed.weight[ids]).square().sum(1)
        vectors = broadcast_from_rank0(flat[distance.topk(min(len(dead), len(flat) // 8)).indices])
        dead = dead[: len(vectors)]
        quantize.embed.weight[dead] = vectors
        quantize.embed_avg[dead] = vectors * 0.2
        quantize.cluster_size[dead] = 0.2
        quantize.usage[dead] = 0.1


def reconstruction_loss(
    decoded: Tensor, pixels: Tensor, masks: Tensor, options: ImageOptions
) -> tuple[Tensor, dict[str, float]]:
    """Compute the squared error of normalised images [B, 3, H, W], weighted by masks [B, 1, H, W], and PSNR in dB."""
    error = (decoded - pixels).square()
    small, fine = masks.split([options.small_frames, options.fine_crops])
    weights = torch.cat([weigh_by_size(small, options.size_power), fine])  # a crop may cut the subject
    loss = (error * (options.background_weight + options.subject_weight * weights)).mean()
    scaled = error.detach() * error.new_tensor(STD).view(1, 3, 1, 1).square()
    parts = scaled.split([options.small_frames, options.fine_crops])
    psnr = [float(-10 * torch.log10(part.mean())) for part in parts]
    return loss, {"psnr_small": psnr[0], "psnr_fine": psnr[1]}


def weigh_by_size(masks: Tensor, power: float) -> Tensor:
    """Multiply each subject mask [B, 1, H, W] by (mean area of all / its own area) ** power."""
    areas = masks.mean((1, 2, 3), keepdim=True)  # [B, 1, 1, 1]
    is_visible = areas > 0
    if power == 0 or not is_visible.any():
        return masks
    return masks * (areas[is_visible].mean() / areas.clamp(min=1e-3)) ** power


def all_reduce_sum(values: Tensor) -> Tensor:
    """Return the sum over all processes, so that each one keeps the same codebook."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def broadcast_from_rank0(values: Tensor) -> Tensor:
    """Return the first process's values. The shape must be the same in every process."""
    values = values.contiguous()
    if torch.distributed.is_initialized():
        torch.distributed.broadcast(values, 0)
    return values


def encode(codec: Any, pixels: Tensor) -> Tensor:
    """Encode normalised pixels [B, 3, H, W] to vectors before quantisation [B, z, h, w].

    Always in single precision, since small differences decide which code is nearest.
    """
    with torch.autocast(pixels.device.type, enabled=False):
        z: Tensor = codec.quantize.proj(codec.down_samplers[0](codec.enc(pixels)))
    return z


@torch.no_grad()
def tokenise(codec: Any, pixels: npt.NDArray[Any]) -> Tensor:
    """Convert frames uint8 [B, H, W, 3] to tokens [B, N], as `ImageTokenizer.encode` does, without one-hot matrices."""
    z = encode(codec, normalise(pixels).to(codec.quantize.embed.weight.device))
    flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
    return nearest(flat, codec.quantize.embed.weight).view(len(pixels), -1)
