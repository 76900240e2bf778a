"""Texts of B videos -> their five keyframes, tokens [B, 5, N], one token of each at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

import torch
from torch import Tensor

from cogvideo.config import SamplingOptions
from cogvideo.inference import decoding
from cogvideo.inference.decoding import DecodedTokens, IsCancelled, Texts
from cogvideo.inference.sampling import (
    FINEST_FRAME_COUNT,
    ClusterSampler,
    StageKey,
    TokenSampler,
    noise_frame_indices,
    noise_keys,
)
from cogvideo.models.video_lm import VideoLM

MAX_ROWS: Final = 32
"""Sequences in one batch."""
_NEXT: Final = FINEST_FRAME_COUNT + 1
"""Further candidates for a first frame draw the noise of moments after the clip's end, so many for each."""


@dataclass(frozen=True)
class KeyframeTexts:
    """Token ids of B videos: what the first frame reads, what the others read, what guidance compares with.

    `unconditional` None: no guidance.
    """

    first: Texts
    video: Texts
    unconditional: Texts | None

    def subset(self, some: slice) -> KeyframeTexts:
        """Those of some of the videos."""
        without = None if self.unconditional is None else self.unconditional[some]
        return KeyframeTexts(self.first[some], self.video[some], without)


class KeyframeStep(NamedTuple):
    """One more token of a keyframe is drawn, or all of a first frame that was given."""

    frame: int
    """0 .. 4."""
    num_tokens: int
    """Tokens of this keyframe so far."""
    video_tokens: Tensor  # [B, 5, N], filled as far as drawn, 0 elsewhere
    tokens: int
    """Tokens that this step drew, over all videos."""
    is_complete: bool = True
    """Whether every video has come so far: where not all fit into one batch, those of the last one come last."""


def generate_keyframes(
    lm: VideoLM,
    texts: KeyframeTexts,
    sampler: ClusterSampler,
    options: SamplingOptions,
    seeds: Sequence[int],
    stop: IsCancelled | None = None,
    ahead: int = 1,
    given: Tensor | None = None,
    max_rows: int = MAX_ROWS,
) -> Iterator[KeyframeStep]:
    """Draw keyframes of B videos, `seeds` [B]. `ahead`: see `decode.speculate`. Raises Cancelled, WeightsError.

    `given` [B, N]: first frames that are there already; None: they are drawn too. `max_rows`: sequences that the
    network reads at once; with guidance a video has two.
    """
    layout = lm.layout
    clip = torch.zeros(len(seeds), layout.frames, layout.tokens_per_frame, dtype=torch.long, device=sampler.device)
    if given is not None:
        clip[:, 0] = given
    at_once = max_rows if texts.unconditional is None else max(1, max_rows // 2)
    for at in range(0, len(seeds), at_once):
        some = slice(at, at + at_once)
        wish = lm, clip[some], texts.subset(some), sampler, options, seeds[some], stop, ahead
        if given is None:
            first = _draw_first(*wish, max_rows)
        else:
            first = iter([KeyframeStep(0, layout.tokens_per_frame, clip, 0)])
        for step in chain(first, _draw_others(*wish)):
            yield step._replace(video_tokens=clip, is_complete=at + at_once >= len(seeds))


def _draw_first(
    lm: VideoLM,
    clip: Tensor,
    texts: KeyframeTexts,
    sampler: ClusterSampler,
    options: SamplingOptions,
    seeds: Sequence[int],
    stop: IsCancelled | None,
    ahead: int,
    max_rows: int,
) -> Iterator[KeyframeStep]:
    """First frames of one batch, into `clip` [B, 5, N]. Where there are candidates, the first of each is what is seen
    as it grows, and the likeliest is what it becomes with its last token.
    """
    videos, size = len(seeds), lm.layout.tokens_per_frame
    rows = [(video, candidate) for candidate in range(options.best_of) for video in range(videos)]
    drawn = clip.new_zeros(len(rows), size)
    likelihoods = []
    for at in range(0, len(rows), max_rows):
        some = rows[at : at + max_rows]
        keys = noise_keys([seeds[v] for v, _ in some], StageKey.KEYFRAMES, [_NEXT * c for _, c in some], size)
        dice = TokenSampler(sampler, options.first_frame, {0: keys}, weigh=options.best_of > 1)
        wish = [texts.first[video] for video, _ in some]
        tokens = decoding.first_frame(lm, wish, dice, text_boost=options.text_attention_bias, stop=stop, ahead=ahead)
        for token in tokens:
            drawn[at : at + len(some), token.slot] = token.ids
            clip[:, 0] = drawn[:videos]
            if token.slot + 1 < size:
                yield KeyframeStep(0, size - 1, clip, 0) if at else KeyframeStep(0, token.slot + 1, clip, videos)
        dice.check()
        if options.best_of > 1:
            likelihoods.append(dice.log_likelihood())
    if likelihoods:
        clip[:, 0] = _pick_likeliest(drawn, torch.cat(likelihoods), videos)
    yield KeyframeStep(0, size, clip, videos)


def _pick_likeliest(drawn: Tensor, likelihoods: Tensor, videos: int) -> Tensor:
    """Tokens [candidates * B, N], those of all videos' first candidates first, and [candidates * B] -> [B, N]."""
    best = likelihoods.view(-1, videos).argmax(0)  # [B]
    return drawn.view(-1, videos, drawn.shape[1])[best, torch.arange(videos, device=best.device)]


def _draw_others(
    lm: VideoLM,
    clip: Tensor,
    texts: KeyframeTexts,
    sampler: ClusterSampler,
    options: SamplingOptions,
    seeds: Sequence[int],
    stop: IsCancelled | None,
    ahead: int,
) -> Iterator[KeyframeStep]:
    """The keyframes after the first of one batch, into `clip` [B, 5, N]."""
    keys = {
        frame: noise_keys(seeds, StageKey.KEYFRAMES, [moment] * len(seeds), lm.layout.tokens_per_frame)
        for frame, moment in enumerate(noise_frame_indices(lm.layout.frames))
    }
    dice = TokenSampler(sampler, options.video, keys)
    others = decoding.keyframes(
        lm,
        texts.video,
        clip[:, 0],
        dice,
        unconditional=texts.unconditional,
        guidance=options.guidance_scale,
        plausibility=options.video.plausibility,
        text_boost=options.text_attention_bias,
        stop=stop,
        ahead=ahead,
    )
    yield from _fill(clip, others, dice)


def _fill(clip: Tensor, tokens: Iterator[DecodedTokens], dice: TokenSampler) -> Iterator[KeyframeStep]:
    for token in tokens:
        clip[:, token.frame, token.slot] = token.ids
        if token.slot + 1 == clip.shape[2]:
            dice.check()
        yield KeyframeStep(token.frame, token.slot + 1, clip, len(clip))
