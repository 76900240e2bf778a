"""Frames of one video, tokens [F, N] -> the same frames on a grid three times as fine, [F, 9N], in one pass each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cogvideo.config import TokenSampling
from cogvideo.decode import Stop
from cogvideo.errors import Cancelled
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.token_model import left_pad
from cogvideo.sampling import ClusterSampler, StageKey, noise_keys, not_finite
from cogvideo.stages import moments

DRAWS = 128
"""Tokens that are drawn at once: few enough for their scores to stay in a CPU's cache."""


class FineFrames(NamedTuple):
    """Some frames are done."""

    first: int
    """Index of the first of them."""
    tokens: Tensor  # [frames of this pass, 9N]


def draw(
    lm: SuperResLM,
    clip: Tensor,
    text: Sequence[int],
    sampler: ClusterSampler,
    options: TokenSampling,
    seed: int,
    frames_per_pass: int,
    stop: Stop | None = None,
) -> Iterator[FineFrames]:
    """Enlarge the frames of `clip` [F, N], `frames_per_pass` at a time. Raises Cancelled, WeightsError."""
    clock = moments(len(clip))
    for first in range(0, len(clip), frames_per_pass):
        if stop is not None and stop():
            raise Cancelled
        part = clip[first : first + frames_per_pass]  # [P, N]
        logits = _scores(lm, part, text)  # [P, 9N, V]
        passed, fine = logits.shape[:2]
        keys = noise_keys([seed] * passed, StageKey.SUPERRES, clock[first : first + passed], fine)
        keys = keys.transpose(0, 1).flatten(0, 1).to(sampler.device)  # [P * 9N, 2]
        rows = zip(logits.flatten(0, 1).split(DRAWS), keys.split(DRAWS))
        tokens = torch.cat([sampler.draw(some, key, options) for some, key in rows])
        if not bool(torch.isfinite(logits.sum())):
            raise not_finite()
        yield FineFrames(first, tokens.view(passed, fine))


@torch.inference_mode()
def _scores(lm: SuperResLM, frames: Tensor, text: Sequence[int]) -> Tensor:
    ids, length = left_pad([text] * len(frames), device=frames.device)
    logits: Tensor = lm(ids, length, frames)
    return logits
