"""Stage 2: rounds of interpolation. Tokens of B videos [B, 5, N] become [B, 9, N], [B, 17, N], [B, 33, N].

A round divides a video into blocks of three frames (2i, 2i+1, 2i+2) and generates the two frames between them. All
blocks of all videos are rows of one batch. A batch that is too large is split.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cogvideo.config import SamplingOptions
from cogvideo.inference import decoding
from cogvideo.inference.decoding import DecodeOptions, StageOptions, Texts
from cogvideo.inference.sampling import ClusterSampler, StageKey, TokenSampler, noise_frame_indices, noise_keys
from cogvideo.models.video_lm import VideoLM


@dataclass(frozen=True)
class InterpolationTexts:
    """Token ids of B videos for each round: the conditional and the unconditional texts (None: no guidance)."""

    conditional: Sequence[Texts]
    unconditional: Sequence[Texts] | None = None


class InterpolationStep(NamedTuple):
    """One more token of every row of a batch."""

    tokens: int
    """Tokens generated in this step, over all videos."""
    round: int
    """Number of the round, 1 .. 3."""
    video_tokens: Tensor | None  # [B, 2F-1, N] once the round is complete


def interpolate(
    lm: VideoLM,
    tokens: Tensor,
    texts: InterpolationTexts,
    sampler: ClusterSampler,
    options: SamplingOptions,
    seeds: Sequence[int],
    run: StageOptions = StageOptions(),
    first_round: int = 1,
) -> Iterator[InterpolationStep]:
    """Run one round for each entry of `texts`. Raises Cancelled, WeightsError.

    tokens [B, F, N] with F odd, seeds [B]. `first_round`: number of the first of these rounds. With guidance a block
    takes two of the `run.max_rows` sequences.
    """
    batch_size = run.max_rows if texts.unconditional is None else max(1, run.max_rows // 2)
    decode_options = DecodeOptions(
        guidance_scale=options.interpolation_guidance_scale,
        plausibility=options.video.plausibility,
        text_attention_bias=options.text_attention_bias,
        is_cancelled=run.is_cancelled,
    )
    for index, conditional in enumerate(texts.conditional):
        grown = _spread(tokens)  # [B, 2F-1, N]
        blocks = [(video, 4 * block) for video in range(len(tokens)) for block in range(tokens.shape[1] // 2)]
        for at in range(0, len(blocks), batch_size):
            some = blocks[at : at + batch_size]
            keys = _keys(lm, [(seeds[video], start) for video, start in some], grown.shape[1])
            sample = TokenSampler(sampler, options.video, keys)
            rows = [conditional[video] for video, _ in some]
            without = None if texts.unconditional is None else [texts.unconditional[index][video] for video, _ in some]
            video, start = torch.tensor(some, device=tokens.device).unbind(1)  # [R] each
            given = torch.stack([grown[video, start + frame] for frame in lm.layout.given], dim=1)  # [R, 3, N]
            for token in decoding.interpolate(lm, rows, given, sample, without, decode_options):
                grown[video, start + token.frame, token.slot] = token.ids
                if token.slot + 1 == tokens.shape[2]:
                    sample.check()
                yield InterpolationStep(len(rows), first_round + index, None)
        tokens = grown
        yield InterpolationStep(0, first_round + index, tokens)


def _spread(video: Tensor) -> Tensor:
    """Insert empty frames between the frames of a video: [B, F, N] -> [B, 2F-1, N]."""
    batch, frames, size = video.shape
    spread = video.new_zeros(batch, 2 * frames - 1, size)
    spread[:, ::2] = video
    return spread


def _keys(lm: VideoLM, blocks: Sequence[tuple[int, int]], frames: int) -> dict[int, Tensor]:
    """Return the noise keys of the frames generated in `blocks` (seed, first frame) of videos of `frames` frames."""
    seeds, noise_frames = [seed for seed, _ in blocks], noise_frame_indices(frames)
    return {
        frame: noise_keys(
            seeds,
            StageKey.INTERPOLATE,
            [noise_frames[start + frame] for _, start in blocks],
            lm.layout.tokens_per_frame,
        )
        for frame in lm.layout.generated
    }
