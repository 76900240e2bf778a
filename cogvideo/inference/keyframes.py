"""Stage 1: the five keyframes of B videos, tokens [B, 5, N], one token of each video at a time."""

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

_CANDIDATE_STRIDE: Final = FINEST_FRAME_COUNT + 1
"""Offset of the noise frame index of each further first-frame candidate: it lies after the end of the video."""


@dataclass(frozen=True)
class KeyframeTexts:
    """Token ids of B videos: the text of the first frame, that of the others, and the unconditional text.

    `unconditional` None: no guidance.
    """

    first: Texts
    video: Texts
    unconditional: Texts | None

    def subset(self, some: slice) -> KeyframeTexts:
        """Return the texts of some of the videos."""
        unconditional = None if self.unconditional is None else self.unconditional[some]
        return KeyframeTexts(self.first[some], self.video[some], unconditional)


class KeyframeStep(NamedTuple):
    """One more token of a keyframe, or all tokens of a given first frame."""

    frame: int
    """0 .. 4."""
    num_tokens: int
    """Tokens of this keyframe so far."""
    video_tokens: Tensor  # [B, 5, N], 0 for tokens not generated yet
    tokens: int
    """Tokens generated in this step, over all videos."""
    is_complete: bool = True
    """Whether every video has reached this token. Only the last batch sets it if there are several batches."""


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

    `given` [B, N]: existing first frames. None: they are generated as well. With guidance a video takes two of the
    `run.max_rows` sequences.
    """
    layout = lm.layout
    shape = len(seeds), layout.frames, layout.tokens_per_frame
    tokens = torch.zeros(shape, dtype=torch.long, device=sampler.device)  # [B, 5, N]
    if given is not None:
        tokens[:, 0] = given
    batch_size = run.max_rows if texts.unconditional is None else max(1, run.max_rows // 2)
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        batch = _Batch(lm, texts.subset(part), sampler, options, seeds[part], run)
        first = batch.first_frames(tokens[part]) if given is None else iter(batch.given_frames(tokens[part]))
        for step in chain(first, batch.other_frames(tokens[part])):
            yield step._replace(video_tokens=tokens, is_complete=start + batch_size >= len(seeds))


@dataclass(frozen=True)
class _Batch:
    """One batch of B videos. Methods fill tokens [B, 5, N] in place."""

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
        """Return the step of first frames that exist already."""
        return [KeyframeStep(0, self._size, tokens, 0)]

    def first_frames(self, tokens: Tensor) -> Iterator[KeyframeStep]:
        """Generate first frames. With `best_of`, the steps contain the first candidate of each video.

        The last step replaces it with the most likely candidate.
        """
        videos, size, best_of = len(self.seeds), self._size, self.options.best_of
        rows = [(video, candidate) for candidate in range(best_of) for video in range(videos)]
        sampled = tokens.new_zeros(len(rows), size)
        likelihoods = []
        for start in range(0, len(rows), self.run.max_rows):
            batch = rows[start : start + self.run.max_rows]
            seeds, noise_frames = [self.seeds[v] for v, _ in batch], [_CANDIDATE_STRIDE * c for _, c in batch]
            keys = {0: noise_keys(seeds, StageKey.KEYFRAMES, noise_frames, size)}
            sample = TokenSampler(self.sampler, self.options.first_frame, keys, weigh=best_of > 1)
            texts = [self.texts.first[video] for video, _ in batch]
            for token in decoding.first_frame(self.lm, texts, sample, self._decode_options):
                sampled[start : start + len(batch), token.slot] = token.ids
                tokens[:, 0] = sampled[:videos]
                if token.slot + 1 < size:
                    done, new = (size - 1, 0) if start else (token.slot + 1, videos)
                    yield KeyframeStep(0, done, tokens, new)
            sample.check()
            if best_of > 1:
                likelihoods.append(sample.log_likelihood())
        if likelihoods:
            tokens[:, 0] = _select_most_likely(sampled, torch.cat(likelihoods), videos)
        yield KeyframeStep(0, size, tokens, videos)

    def other_frames(self, tokens: Tensor) -> Iterator[KeyframeStep]:
        """Generate the keyframes after the first."""
        keys = {
            frame: noise_keys(self.seeds, StageKey.KEYFRAMES, [noise_frame] * len(self.seeds), self._size)
            for frame, noise_frame in enumerate(noise_frame_indices(self.lm.layout.frames))
        }
        sample = TokenSampler(self.sampler, self.options.video, keys)
        texts, unconditional = self.texts.video, self.texts.unconditional
        for token in decoding.keyframes(self.lm, texts, tokens[:, 0], sample, unconditional, self._decode_options):
            tokens[:, token.frame, token.slot] = token.ids
            if token.slot + 1 == self._size:
                sample.check()
            yield KeyframeStep(token.frame, token.slot + 1, tokens, len(tokens))


def _select_most_likely(sampled: Tensor, likelihoods: Tensor, videos: int) -> Tensor:
    """Return the most likely candidate of each video, tokens [B, N].

    `sampled` [candidates * B, N], the first candidates of all videos first; `likelihoods` [candidates * B].
    """
    best = likelihoods.view(-1, videos).argmax(0)  # [B]
    return sampled.view(-1, videos, sampled.shape[1])[best, torch.arange(videos, device=best.device)]
