"""Images for the training of the VQ-VAE: whole small frames and crops of large ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor

from cogvideo.data.dataset import KEYFRAMES, PreparedClips, downscale
from cogvideo.data.synthetic_render import COARSE, FINE, PLAIN, render_state
from cogvideo.data.synthetic_vocabulary import SCENES
from cogvideo.data.synthetic_world import DURATIONS, Clip, HeldOut, sample_clip
from cogvideo.errors import RequestError

MEAN = (0.79093, 0.76271, 0.75340)
STD = (0.30379, 0.32279, 0.32800)
SHOWN = 0.05
"""Opacity in a patch from which on its token counts as one of the subject's."""
DRIFTING: Final = 0.35
"""Share of the codec's frames from clips that move freely: it has seen every subject at every size and angle."""


@dataclass(frozen=True)
class ImageOptions:
    """What pictures a step holds, and what counts in them."""

    small_frames: int = 48
    fine_crops: int = 24
    crop_cells: int = 8
    """Side of a fine crop in tokens (8 pixels each)."""
    background_weight: float = 0.5
    subject_weight: float = 3.0
    size_power: float = 0.0
    """Of small frames: power of a subject's area by which its pixels count less, 0 to 1. 0: all pixels alike, so that
    a large subject counts more than a small one; 1: all subjects alike. A small one is lost to fewer wrong pixels."""
    motion_odds: Sequence[float] | None = None
    """Of the small world: how often each of its motions comes, beside the others; None: all alike. What turns shows
    more than the tokens were made for, which the decoder has to make up for."""
    size_odds: Sequence[float] | None = None
    """The same of its sizes; None: mostly the middle one."""


Pictures = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]
"""Frames uint8 [B, H, W, 3], and how much of every pixel is the subject, [B, H, W]."""

Sample = Callable[[np.random.Generator, ImageOptions], Pictures]
"""What to show the codec in a step: `small_frames` whole small frames, then `fine_crops` crops of the same size.

Where subjects are marked, the second half of either kind are the first half's twins: the same before a plain ground."""


def sample_world(held_out: HeldOut) -> Sample:
    """Frames of the synthetic world, subjects marked, each before its scene and before a plain ground."""

    def sample(rng: np.random.Generator, options: ImageOptions) -> Pictures:
        if options.small_frames % 2 or options.fine_crops % 2:
            raise RequestError(
                f"小世界的画面成对出现：small_frames（{options.small_frames}）和 "
                f"fine_crops（{options.fine_crops}）须为偶数。",
                f"The world's frames come in pairs: small_frames ({options.small_frames}) and fine_crops "
                f"({options.fine_crops}) must be even.",
            )
        small, small_masks = sample_frames(rng, held_out, options.small_frames, COARSE, options)
        fine, fine_masks = sample_frames(rng, held_out, options.fine_crops, FINE, options)
        fine, fine_masks = _crop_to_subject(rng, fine, fine_masks, options.crop_cells, COARSE)
        return np.concatenate([small, fine]), np.concatenate([small_masks, fine_masks])

    return sample


def sample_clips(clips: PreparedClips, upscale: int) -> Sample:
    """Keyframes of prepared clips, nothing marked."""

    def sample(rng: np.random.Generator, options: ImageOptions) -> Pictures:
        count = options.small_frames + options.fine_crops
        chosen = zip(rng.integers(len(clips), size=count), rng.integers(KEYFRAMES, size=count), strict=True)
        frames = np.stack([clips.pixels(int(clip))[frame] for clip, frame in chosen])
        small = downscale(frames[: options.small_frames], upscale)
        fine = _crop(rng, frames[options.small_frames :], small.shape[1:3])
        pixels = np.concatenate([small, fine])
        return pixels, np.zeros(pixels.shape[:3], np.float32)

    return sample


def _crop(rng: np.random.Generator, pictures: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A crop of `size` from every picture, anywhere: real footage keeps to no grid."""
    height, width = size
    corners = [[int(rng.integers(limit + 1)) for limit in (p.shape[0] - height, p.shape[1] - width)] for p in pictures]
    return np.stack([p[y : y + height, x : x + width] for p, (y, x) in zip(pictures, corners, strict=True)])


def sample_frames(
    rng: np.random.Generator, held_out: HeldOut, count: int, cell: int, options: ImageOptions
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """`count` frames (an even number) at random moments: uint8 [count, H, W, 3] and masks [count, H, W].

    The second half shows what the first half shows, before a plain ground. Subjects stand in every scene, in those that
    are held out for the networks as well, since no words come with them.
    """
    moments = [_sample_moment(rng, held_out, options) for _ in range(count // 2)]
    moments = [(replace(clip, scene=int(rng.integers(len(SCENES)))), t) for clip, t in moments]
    twins = [(replace(clip, scene=PLAIN), t) for clip, t in moments]
    drawn = [render_state(c.subject, c.scene, c.variant, c.state(t), cell) for c, t in moments + twins]
    return np.stack([picture for picture, _ in drawn]), np.stack([mask for _, mask in drawn])


def _sample_moment(rng: np.random.Generator, held_out: HeldOut, options: ImageOptions) -> tuple[Clip, float]:
    """A clip and a moment of it in seconds. Interpolation shows every eighth of a second and less: all count alike.

    All clips are the longest: what a shorter one shows, the beginning of a long one shows, but who comes to an end
    early is seldom seen upside down.
    """
    odds, sizes = options.motion_odds, options.size_odds
    clip = sample_clip(rng, held_out, max(DURATIONS), odds=odds, drifting=DRIFTING, size_odds=sizes)
    moment = float(rng.integers(0, round(clip.duration * 16) + 1)) / 16
    return clip, float(round(moment)) if rng.random() < 0.3 else moment


def _crop_to_subject(
    rng: np.random.Generator,
    pictures: npt.NDArray[Any],
    masks: npt.NDArray[Any],
    cells: int,
    patch: int,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Crops of `cells` patches, mostly about the subject, aligned to the token grid; a pair's are the same."""
    side, limit, half = cells * patch, pictures.shape[1] // patch - cells, len(pictures) // 2
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
    return np.stack([pictures[crop] for crop in crops]), np.stack([masks[crop] for crop in crops])


def normalise(pixels: npt.NDArray[Any]) -> Tensor:
    """uint8 [B, H, W, 3] -> normalised float [B, 3, H, W], as icetk's image tokenizer does."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def denormalise(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """The reverse of `normalise`, clamped."""
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    bytes_ = (pixels * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return bytes_.permute(0, 2, 3, 1).cpu().numpy()
