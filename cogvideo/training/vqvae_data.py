"""Images that codec and decoder learn from: sampled frames of the synthetic world or of prepared clips.

A batch holds small frames, then crops of large ones of the same size, with a mask of the subject in each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cogvideo.data.dataset import KEYFRAMES, PreparedClips, downscale
from cogvideo.data.synthetic_render import COARSE, FINE, PLAIN, render_state
from cogvideo.data.synthetic_vocabulary import SCENES
from cogvideo.data.synthetic_world import DURATIONS, Clip, ClipOdds, HeldOut, sample_clip
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.tokenizers.image import MEAN, STD

SUBJECT_OPACITY: Final = 0.05
"""Opacity in a patch above which its token counts as one of the subject."""
DRIFT_PROBABILITY: Final = 0.35
"""Probability of a clip with an unnamed movement. Such clips show every subject at every size and angle."""


@dataclass(frozen=True)
class ImageOptions:
    """Images of a step, and the weights of their pixels."""

    small_frames: int = 48
    fine_crops: int = 24
    crop_cells: int = 8
    """Side of a crop in tokens of 8 pixels."""
    background_weight: float = 0.5
    subject_weight: float = 3.0
    size_power: float = 0.0
    """Power of a subject's area by which its pixels count less in small frames, 0 to 1.

    0: all pixels count alike. 1: all subjects count alike, whatever their size."""
    motion_odds: Sequence[float] | None = None
    """Relative frequencies of the world's motions; None: uniform."""
    size_odds: Sequence[float] | None = None
    """Relative frequencies of the world's sizes; None: mostly the middle one."""


Images = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]
"""Frames uint8 [B, H, W, 3], and the opacity of the subject in each pixel, float [B, H, W] from 0 to 1."""

Sample = Callable[[np.random.Generator, ImageOptions], Images]
"""Samples the images of a step: `small_frames` whole small frames, then `fine_crops` crops of the same size.

If subjects are marked, the second half of each kind shows the first half's subjects on a plain ground."""


def sample_world(held_out: HeldOut) -> Sample:
    """Return a sampler of the world's frames, with marked subjects, each in its scene and on a plain ground."""

    def sample(rng: np.random.Generator, options: ImageOptions) -> Images:
        if options.small_frames % 2 or options.fine_crops % 2:
            raise RequestError(
                *message("vqvae_data.odd_frame_count", small_frames=options.small_frames, fine_crops=options.fine_crops)
            )
        small, small_masks = sample_frames(rng, held_out, options.small_frames, COARSE, options)
        fine, fine_masks = sample_frames(rng, held_out, options.fine_crops, FINE, options)
        fine, fine_masks = _crop_to_subject(rng, fine, fine_masks, options.crop_cells, COARSE)
        return np.concatenate([small, fine]), np.concatenate([small_masks, fine_masks])

    return sample


def sample_clips(clips: PreparedClips, upscale: int) -> Sample:
    """Return a sampler of prepared clips' keyframes, without marked subjects."""

    def sample(rng: np.random.Generator, options: ImageOptions) -> Images:
        count = options.small_frames + options.fine_crops
        chosen = zip(rng.integers(len(clips), size=count), rng.integers(KEYFRAMES, size=count), strict=True)
        frames = np.stack([clips.pixels(int(clip))[frame] for clip, frame in chosen])
        small = downscale(frames[: options.small_frames], upscale)
        fine = _crop(rng, frames[options.small_frames :], small.shape[1:3])
        pixels = np.concatenate([small, fine])
        return pixels, np.zeros(pixels.shape[:3], np.float32)

    return sample


def _crop(rng: np.random.Generator, images: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Crop every image to `size` (height, width) at a random place, not aligned to the token grid."""
    height, width = size
    corners = [[int(rng.integers(limit + 1)) for limit in (p.shape[0] - height, p.shape[1] - width)] for p in images]
    return np.stack([p[y : y + height, x : x + width] for p, (y, x) in zip(images, corners, strict=True)])


def sample_frames(
    rng: np.random.Generator, held_out: HeldOut, count: int, cell: int, options: ImageOptions
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Sample `count` frames (even) at random moments: uint8 [count, H, W, 3] and masks [count, H, W].

    The second half shows the first half's subjects on a plain ground. Pairs of subject and scene that are held out from
    the networks occur as well, since the codec reads no captions.
    """
    moments = [_sample_moment(rng, held_out, options) for _ in range(count // 2)]
    moments = [(replace(clip, scene=int(rng.integers(len(SCENES)))), t) for clip, t in moments]
    twins = [(replace(clip, scene=PLAIN), t) for clip, t in moments]
    rendered = [render_state(c.subject, c.scene, c.variant, c.state(t), cell) for c, t in moments + twins]
    return np.stack([frame for frame, _ in rendered]), np.stack([mask for _, mask in rendered])


def _sample_moment(rng: np.random.Generator, held_out: HeldOut, options: ImageOptions) -> tuple[Clip, float]:
    """Sample a clip and a time in it, in seconds, at a multiple of a sixteenth.

    Clips have the longest duration: shorter clips show only their beginnings, and seldom a subject upside down.
    """
    odds = ClipOdds(options.motion_odds, options.size_odds, DRIFT_PROBABILITY)
    clip = sample_clip(rng, held_out, max(DURATIONS), odds)
    moment = float(rng.integers(0, round(clip.duration * 16) + 1)) / 16
    return clip, float(round(moment)) if rng.random() < 0.3 else moment


def _crop_to_subject(
    rng: np.random.Generator,
    images: npt.NDArray[Any],
    masks: npt.NDArray[Any],
    cells: int,
    patch: int,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Crop images and masks to `cells` patches a side, mostly at the subject, aligned to the token grid.

    Both images of a pair are cropped at the same place.
    """
    side, limit, half = cells * patch, images.shape[1] // patch - cells, len(images) // 2
    corners = []
    for mask in masks[:half]:
        ys, xs = np.nonzero(mask > 0.5)
        if len(ys) and rng.random() < 0.85:
            at = rng.integers(len(ys))
            corner = [int(v[at]) // patch - int(rng.integers(cells)) for v in (ys, xs)]
        else:
            corner = [int(rng.integers(limit + 1)) for _ in range(2)]
        corners.append([min(max(c, 0), limit) * patch for c in corner])
    crops = [(i, slice(y, y + side), slice(x, x + side)) for i, (y, x) in enumerate(corners + corners)]
    return np.stack([images[crop] for crop in crops]), np.stack([masks[crop] for crop in crops])


def normalise(pixels: npt.NDArray[Any]) -> Tensor:
    """Normalise uint8 [B, H, W, 3] to float [B, 3, H, W], as icetk's image tokenizer does."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def denormalise(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """Reverse `normalise`; values are clamped to 0..255."""
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    bytes_ = (pixels * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return bytes_.permute(0, 2, 3, 1).cpu().numpy()
