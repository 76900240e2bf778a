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
from cogvideo.inference.decoding import DecodeOptions, StageOptions, Texts
from cogvideo.inference.sampling import (
    FINEST_FRAME_COUNT,
    ClusterSampler,
    StageKey,
    TokenSampler,
    noise_frame_indices,
    noise_keys,
)
from cogvideo.models.video_lm import VideoLM

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
    run: StageOptions = StageOptions(),
    given: Tensor | None = None,
) -> Iterator[KeyframeStep]:
    """Generate the keyframes of B videos, `seeds` [B]. Raises Cancelled, WeightsError.

    `given` [B, N]: first frames that exist already; None: they are generated too. With guidance a video has two of the
    `run.max_rows` sequences.
    """
    layout = lm.layout
    shape = len(seeds), layout.frames, layout.tokens_per_frame
    tokens = torch.zeros(shape, dtype=torch.long, device=sampler.device)  # [B, 5, N]
    if given is not None:
        tokens[:, 0] = given
    at_once = run.max_rows if texts.unconditional is None else max(1, run.max_rows // 2)
    for at in range(0, len(seeds), at_once):
        some = slice(at, at + at_once)
        batch = _Batch(lm, texts.subset(some), sampler, options, seeds[some], run)
        first = batch.first_frames(tokens[some]) if given is None else iter(batch.given_frames(tokens[some]))
        for step in chain(first, batch.other_frames(tokens[some])):
            yield step._replace(video_tokens=tokens, is_complete=at + at_once >= len(seeds))


@dataclass(frozen=True)
class _Batch:
    """The B videos that fit into one batch of the network. Methods fill tokens [B, 5, N] in place."""

    lm: VideoLM
    texts: KeyframeTexts
    sampler: ClusterSampler
    options: SamplingOptions
    seeds: Sequence[int]
    run: StageOptions

    @property
    def _size(self) -> int:
        return self.lm.layout.tokens_per_frame

    @property
    def _decode_options(self) -> DecodeOptions:
        return DecodeOptions(
            guidance_scale=self.options.guidance_scale,
            plausibility=self.options.video.plausibility,
            text_attention_bias=self.options.text_attention_bias,
            lookahead=self.run.lookahead,
            is_cancelled=self.run.is_cancelled,
        )

    def given_frames(self, tokens: Tensor) -> list[KeyframeStep]:
        """The step of first frames that exist already."""
        return [KeyframeStep(0, self._size, tokens, 0)]

    def first_frames(self, tokens: Tensor) -> Iterator[KeyframeStep]:
        """Generate first frames. With `best_of`, the first candidate of each video is shown as it grows.

        The likeliest candidate replaces it together with its last token.
        """
        videos, size, best_of = len(self.seeds), self._size, self.options.best_of
        rows = [(video, candidate) for candidate in range(best_of) for video in range(videos)]
        sampled = tokens.new_zeros(len(rows), size)
        likelihoods = []
        for at in range(0, len(rows), self.run.max_rows):
            some = rows[at : at + self.run.max_rows]
            seeds, moments = [self.seeds[v] for v, _ in some], [_NEXT * c for _, c in some]
            keys = {0: noise_keys(seeds, StageKey.KEYFRAMES, moments, size)}
            sample = TokenSampler(self.sampler, self.options.first_frame, keys, weigh=best_of > 1)
            texts = [self.texts.first[video] for video, _ in some]
            for token in decoding.first_frame(self.lm, texts, sample, self._decode_options):
                sampled[at : at + len(some), token.slot] = token.ids
                tokens[:, 0] = sampled[:videos]
                if token.slot + 1 < size:
                    yield (
                        KeyframeStep(0, size - 1, tokens, 0) if at else KeyframeStep(0, token.slot + 1, tokens, videos)
                    )
            sample.check()
            if best_of > 1:
                likelihoods.append(sample.log_likelihood())
        if likelihoods:
            tokens[:, 0] = _pick_likeliest(sampled, torch.cat(likelihoods), videos)
        yield KeyframeStep(0, size, tokens, videos)

    def other_frames(self, tokens: Tensor) -> Iterator[KeyframeStep]:
        """Generate the keyframes after the first."""
        keys = {
            frame: noise_keys(self.seeds, StageKey.KEYFRAMES, [moment] * len(self.seeds), self._size)
            for frame, moment in enumerate(noise_frame_indices(self.lm.layout.frames))
        }
        sample = TokenSampler(self.sampler, self.options.video, keys)
        texts, unconditional = self.texts.video, self.texts.unconditional
        for token in decoding.keyframes(self.lm, texts, tokens[:, 0], sample, unconditional, self._decode_options):
            tokens[:, token.frame, token.slot] = token.ids
            if token.slot + 1 == self._size:
                sample.check()
            yield KeyframeStep(token.frame, token.slot + 1, tokens, len(tokens))


def _pick_likeliest(sampled: Tensor, likelihoods: Tensor, videos: int) -> Tensor:
    """Tokens [candidates * B, N], those of all videos' first candidates first, and [candidates * B] -> [B, N]."""
    best = likelihoods.view(-1, videos).argmax(0)  # [B]
    return sampled.view(-1, videos, sampled.shape[1])[best, torch.arange(videos, device=best.device)]
