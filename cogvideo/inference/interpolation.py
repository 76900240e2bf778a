"""Keyframes of B videos, tokens [B, 5, N] -> [B, 9, N], [B, 17, N], [B, 33, N]: each round draws a frame between two.

A round cuts a clip into blocks of three frames (2i, 2i+1, 2i+2) and draws the two frames between them. All blocks of
all videos are rows of one batch, cut where it would be too large.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cogvideo.config import TokenSampling
from cogvideo.inference import decoding
from cogvideo.inference.decoding import DecodedTokens, IsCancelled, Texts
from cogvideo.inference.sampling import ClusterSampler, StageKey, TokenSampler, noise_frame_indices, noise_keys
from cogvideo.models.video_lm import VideoLM

MAX_ROWS = 32
"""Blocks in one batch; the eight blocks of the last round times four videos."""


class InterpolationGuidance(NamedTuple):
    """What the frames are guided away from, and how strongly."""

    unconditional: Texts
    """The text of each round without its prompt."""
    weight: float


class InterpolationStep(NamedTuple):
    """One more token of every row of a batch is drawn."""

    tokens: int
    """How many tokens that was, over all videos."""
    level: int
    """The round, 1 .. 3."""
    clip: Tensor | None  # [B, 2F-1, N] once the round is complete


def interpolate(
    lm: VideoLM,
    clip: Tensor,
    texts: Sequence[Texts],
    sampler: ClusterSampler,
    options: TokenSampling,
    text_boost: float,
    seeds: Sequence[int],
    stop: IsCancelled | None = None,
    max_rows: int = MAX_ROWS,
    first_level: int = 1,
    guidance: InterpolationGuidance | None = None,
) -> Iterator[InterpolationStep]:
    """One round for each entry of `texts`: ids of B videos, with that round's duration. Raises Cancelled, WeightsError.

    clip [B, F, N] with F odd, seeds [B]. `first_level`: number of the first of these rounds. `max_rows`: sequences that
    the network reads at once; with `guidance` a block has two.
    """
    at_once = max_rows if guidance is None else max(1, max_rows // 2)
    for level, round_texts in enumerate(texts, start=first_level):
        grown = _spread(clip)  # [B, 2F-1, N]
        blocks = [(video, 4 * block) for video in range(len(clip)) for block in range(clip.shape[1] // 2)]
        for at in range(0, len(blocks), at_once):
            videos, starts = zip(*blocks[at : at + at_once])
            dice = TokenSampler(sampler, options, _keys(lm, [seeds[v] for v in videos], starts, grown.shape[1]))
            rows = [round_texts[v] for v in videos]
            wish: dict[str, Any] = {"text_boost": text_boost, "stop": stop}
            if guidance is not None:
                wish["unconditional"] = [guidance.unconditional[level - first_level]] * len(rows)
                wish |= {"guidance": guidance.weight, "plausibility": options.plausibility}
            for _ in _fill(lm, grown, videos, starts, rows, dice, wish):
                yield InterpolationStep(len(rows), level, None)
        clip = grown
        yield InterpolationStep(0, level, clip)


def _fill(
    lm: VideoLM,
    clip: Tensor,
    videos: Sequence[int],
    starts: Sequence[int],
    texts: Texts,
    dice: TokenSampler,
    options: dict[str, Any],
) -> Iterator[DecodedTokens]:
    """Draw the missing frames of the blocks that begin at frames `starts` [R] of `videos` [R], into `clip`.

    `options`: of `decode.interpolate`.
    """
    video, start = (torch.tensor(numbers, device=clip.device) for numbers in (videos, starts))
    given = torch.stack([clip[video, start + frame] for frame in lm.layout.given], dim=1)  # [R, 3, N]
    for token in decoding.interpolate(lm, texts, given, dice, **options):
        clip[video, start + token.frame, token.slot] = token.ids
        if token.slot + 1 == clip.shape[2]:
            dice.check()
        yield token


def _spread(clip: Tensor) -> Tensor:
    """[B, F, N] -> [B, 2F-1, N] with empty frames between the old ones."""
    batch, frames, size = clip.shape
    grown = clip.new_zeros(batch, 2 * frames - 1, size)
    grown[:, ::2] = clip
    return grown


def _keys(lm: VideoLM, seeds: Sequence[int], starts: Sequence[int], frames: int) -> dict[int, Tensor]:
    """Keys of the frames drawn in blocks that begin at frames `starts` of a clip of `frames`."""
    clock = noise_frame_indices(frames)
    return {
        frame: noise_keys(
            seeds, StageKey.INTERPOLATE, [clock[start + frame] for start in starts], lm.layout.tokens_per_frame
        )
        for frame in lm.layout.generated
    }
