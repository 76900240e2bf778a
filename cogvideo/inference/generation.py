"""Generation of a batch of requests: keyframes, in-between frames and super-resolution, as events.

prompt -> text ids -> keyframes [B, 5, N] -> rounds [B, F, N] -> super-resolution [F, 9N] -> uint8 [F, H, W, 3]

The noise of a token is a function of its seed, stage, frame and slot alone. A video therefore does not depend on its
batch, except by rounding. Rounding may change a sample if two tokens are equally probable.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from cogvideo.config import FRAME_COUNTS, ModelConfig, Preset
from cogvideo.errors import RequestError
from cogvideo.events import (
    Frames,
    FrameUpscaled,
    KeyframeCompleted,
    KeyframePreview,
    Progress,
    RoundCompleted,
    StageName,
)
from cogvideo.inference.decoding import IsCancelled, StageOptions
from cogvideo.inference.interpolation import InterpolationTexts, interpolate
from cogvideo.inference.keyframes import KeyframeStep, KeyframeTexts, generate_keyframes
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.inference.super_resolution import UpscaleOptions, upscale
from cogvideo.media.images import side_by_side
from cogvideo.messages import message
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.request import VideoRequest, tokens_per_stage
from cogvideo.runtime.device import DevicePlacement, torch_threads
from cogvideo.runtime.placement import on_device, upscaler_on_device
from cogvideo.token_frames import TokenFrames
from cogvideo.tokenizers.image import ImageTokenizer, back_project
from cogvideo.tokenizers.text import (
    TextTokenizer,
    first_frame_text,
    interpolation_text,
    round_seconds,
    superres_text,
    unconditional_text,
    video_text,
)

PREVIEWS: Final = 4
"""Images of a keyframe while it is generated, the finished one included."""

LOOKAHEAD_TOKENS: Final = 4
"""Slots of a keyframe that one step evaluates on a CPU.

With `mini` and real prompts a step yields 2.6 to 3.4 tokens (assets/bench/ahead.json). Keyframes take 82 % of the time
on one core and 65 % on two. Eight slots are no faster. Lookahead is off for in-between frames: the wavefront is as
fast, and all rows would have to agree. It is off on a GPU as well, since each step would wait for the CPU.
"""


class Models(Protocol):
    """The three networks, in evaluation mode; they may share a backbone."""

    @property
    def stage1(self) -> VideoLM: ...

    @property
    def stage2(self) -> VideoLM: ...

    @property
    def superres(self) -> SuperResLM: ...


class PipelineComponents(NamedTuple):
    """The loaded components that generate videos."""

    tokenizer: TextTokenizer
    sampler: ClusterSampler
    codec: ImageTokenizer
    models: Models


@dataclass(frozen=True)
class GenerationOptions:
    """Options for the events, and for how the networks run. No option changes a token, except by rounding."""

    show: bool = False
    """Whether keyframes, rounds and upscaled frames are decoded and yielded as they complete."""
    previews: bool = False
    """With `show`: whether a keyframe is yielded several times while it is generated."""
    decode: bool = True
    """Whether the videos are decoded to pixels."""
    max_rows: int | None = None
    """Sequences that stage 2 reads at once, limited by the memory preset. None: the preset's limit."""
    lookahead: int | None = None
    """See `DecodeOptions`. None: `LOOKAHEAD_TOKENS` on a CPU, else 1."""
    is_cancelled: IsCancelled | None = None


@dataclass(frozen=True)
class GeneratedVideo:
    """The event that one request is finished. Events follow the order of the requests."""

    index: int
    frames: Frames | None
    """uint8 [F, H, W, 3]; the drafts of one request side by side. None without `decode`."""
    tokens: Tensor
    """int64 [drafts, F, N] before super-resolution, on the device of the sampler."""

    @property
    def keyframes(self) -> Tensor:
        """The keyframes of the first draft, int64 [5, N] on the CPU."""
        step = (self.tokens.shape[1] - 1) // (FRAME_COUNTS[0] - 1)
        return self.tokens[0, ::step].cpu()


GenerationEvent = Progress | KeyframePreview | KeyframeCompleted | RoundCompleted | FrameUpscaled | GeneratedVideo


class VideoGenerator:
    """The generation of a batch of checked requests with one pass of each network.

    The requests have the same number of frames and drafts, super-resolution and sampling options. Either all have a
    first frame (or initial tokens), or none has. Everything else may differ. B below is the number of videos: one for
    each draft of each request.
    """

    def __init__(
        self,
        components: PipelineComponents,
        preset: Preset,
        placement: DevicePlacement,
        requests: Sequence[VideoRequest],
        options: GenerationOptions = GenerationOptions(),
    ) -> None:
        self.components, self.preset, self.placement = components, preset, placement
        self.requests, self.options = requests, options
        self._like = requests[0]
        self._sampling = self._like.sampling or preset.sampling
        self._done = 0
        self._total = sum(sum(tokens_per_stage(preset.model, request).values()) for request in requests)
        self._shown: Frames | None = None  # of the last round

    def events(self) -> Generator[GenerationEvent, None, None]:
        """Yield events until all videos are finished. Raises Cancelled, WeightsError, CapacityError."""
        tokens = yield from self._begin()  # [B, 5 or more, N]
        tokens = yield from self._interpolate(tokens)  # [B, F, N]
        drafts = self._like.num_drafts
        if drafts > 1 or not self._like.superres:
            for index in range(len(self.requests)):
                video = tokens[index * drafts : (index + 1) * drafts]  # [drafts, F, N]
                yield GeneratedVideo(index, self._pixels(video) if self.options.decode else None, video)
        else:
            yield from self._upscale(tokens)

    # Stages 1 and 2.

    def _begin(self) -> Generator[GenerationEvent, None, Tensor]:
        """Return keyframes [B, 5, N], or the initial tokens [B, F, N] of all requests."""
        given = [request.initial_tokens for request in self.requests if request.initial_tokens is not None]
        if not given:
            return (yield from self._keyframes())
        tokens = self._tensor(given)  # [B, F, N]
        yield from self._show_round(self._like.completed_rounds, tokens)
        return tokens

    def _keyframes(self) -> Generator[GenerationEvent, None, Tensor]:
        drafts = self._like.num_drafts
        prompts = [(request.prompt, request.duration) for request in self.requests for _ in range(drafts)]
        seeds = [seed for request in self.requests for seed in request.seeds]
        texts = keyframe_texts(self.components.tokenizer, self.preset, prompts, self._sampling.guidance_scale)
        first = [request.first_frame for request in self.requests if request.first_frame is not None]
        given = self._tensor(first)[:, 0].repeat_interleave(drafts, 0) if first else None  # [B, N]
        run = StageOptions(self.placement.memory.max_batch_rows, self._lookahead, self.options.is_cancelled)
        with on_device(self.components.models.stage1, self.placement) as lm, torch_threads(1):
            for step in generate_keyframes(lm, texts, self.components.sampler, self._sampling, seeds, run, given):
                if step.tokens:
                    yield self._progress("drafts" if drafts > 1 else "keyframes", step.tokens)
                if self.options.show and step.is_complete:
                    yield from self._show_keyframe(step)
        yield from self._show_round(0, step.video_tokens)
        return step.video_tokens

    def _interpolate(self, tokens: Tensor) -> Generator[GenerationEvent, None, Tensor]:
        """Interpolate tokens [B, 5 or more, N] to [B, F, N]. Drafts are returned unchanged."""
        like = self._like
        if like.num_drafts > 1 or like.completed_rounds == like.rounds:
            return tokens
        texts = interpolation_texts(
            self.components.tokenizer, self.preset, self.requests, self._sampling.interpolation_guidance_scale
        )
        seeds = [r.seed if r.interpolation_seed is None else r.interpolation_seed for r in self.requests]
        limit = self.placement.memory.max_batch_rows
        run = StageOptions(min(limit, self.options.max_rows or limit), is_cancelled=self.options.is_cancelled)
        with on_device(self.components.models.stage2, self.placement) as lm, torch_threads(1):
            sampler, first_round = self.components.sampler, like.completed_rounds + 1
            for step in interpolate(lm, tokens, texts, sampler, self._sampling, seeds, run, first_round):
                if step.tokens:
                    yield self._progress("interpolate", step.tokens)
                if step.video_tokens is not None:
                    tokens = step.video_tokens
                    yield from self._show_round(step.round, tokens)
        return tokens

    # Super-resolution.

    def _upscale(self, tokens: Tensor) -> Iterator[GenerationEvent]:
        """Upscale tokens [B, F, N]; yield upscaled frames and finished videos."""
        lm, memory = self.components.models.superres, self.placement.memory
        with upscaler_on_device(lm, self.placement) as layers, torch_threads():
            run = UpscaleOptions(memory.frames_per_pass, layers, self.options.is_cancelled)
            for index, request in enumerate(self.requests):
                frames: list[Frames] = []
                small = self._pixels(tokens[index : index + 1]) if self.options.decode else None  # [F, h, w, 3]
                text = superres_text(self.components.tokenizer, request.prompt)
                sampler, seed = self.components.sampler, request.seed
                for part in upscale(lm, tokens[index], text, sampler, self._sampling.superres, seed, run):
                    if small is not None:
                        yield from self._show_upscaled(part.first, part.tokens, small, frames)
                    yield self._progress("superres", part.tokens.numel())
                yield GeneratedVideo(index, np.stack(frames) if frames else None, tokens[index : index + 1])

    def _show_upscaled(
        self, first: int, fine: Tensor, small: Frames, frames: list[Frames]
    ) -> Iterator[GenerationEvent]:
        """Decode the upscaled tokens [P, 9N] of P frames, the first numbered `first`, and append them to `frames`."""
        large = self.components.codec.decode(fine, self.preset.model.fine_grid)  # [P, H, W, 3]
        for frame in back_project(large, small[first : first + len(fine)], self.preset.back_projection):
            if self.options.show:
                yield FrameUpscaled(len(frames), len(small), frame)
            frames.append(frame)

    # Events that contain frames.

    def _show_keyframe(self, step: KeyframeStep) -> Iterator[GenerationEvent]:
        """Yield the finished keyframe of each draft, or a preview of it after some of its rows."""
        height, width = grid = self.preset.model.grid
        size, rows = height * width, width * max(1, height // PREVIEWS)
        codec = self.components.codec
        for draft, tokens in enumerate(step.video_tokens[:, step.frame, : step.num_tokens]):
            if step.num_tokens == size:
                yield KeyframeCompleted(step.frame, codec.decode(tokens[None], grid)[0], draft)
            elif self.options.previews and step.num_tokens % rows == 0:
                yield KeyframePreview(step.frame, step.num_tokens, codec.decode_partial(tokens, grid), draft)

    def _show_round(self, number: int, tokens: Tensor) -> Iterator[GenerationEvent]:
        if self.options.show:
            self._shown = None
            self._shown = self._pixels(tokens)
            yield RoundCompleted(number, self._shown, tokens.cpu().numpy())

    def _pixels(self, tokens: Tensor) -> Frames:
        """Decode tokens [B, F, N] to uint8 [F, H, W, 3], several videos side by side."""
        if self._shown is not None:
            return self._shown  # last round of the only request
        grid = self.preset.model.grid
        return side_by_side([self.components.codec.decode(video, grid) for video in tokens])

    def _tensor(self, given: Sequence[TokenFrames]) -> Tensor:
        return torch.tensor([tokens.rows() for tokens in given], device=self.components.sampler.device)  # [R, F, N]

    @property
    def _lookahead(self) -> int:
        if self.options.lookahead is not None:
            return self.options.lookahead
        return LOOKAHEAD_TOKENS if self.placement.device.type == "cpu" else 1

    def _progress(self, stage: StageName, tokens: int) -> Progress:
        self._done += tokens
        return Progress(stage, self._done, self._total)


def keyframe_texts(
    tokenizer: TextTokenizer, preset: Preset, prompts: Sequence[tuple[str, float]], guidance_scale: float
) -> KeyframeTexts:
    """Tokenize the texts of stage 1 for `prompts` (prompt, duration in seconds).

    Without guidance all keyframes but the first read the prompt alone.
    """
    first = [first_frame_text(tokenizer, preset, prompt) for prompt, _ in prompts]
    if guidance_scale == 1.0:
        return KeyframeTexts(first, [interpolation_text(tokenizer, *prompt) for prompt in prompts], None)
    return KeyframeTexts(
        first,
        [video_text(tokenizer, preset, *prompt) for prompt in prompts],
        [unconditional_text(tokenizer, preset, duration) for _, duration in prompts],
    )


def interpolation_texts(
    tokenizer: TextTokenizer, preset: Preset, requests: Sequence[VideoRequest], guidance_scale: float
) -> InterpolationTexts:
    """Tokenize the texts of stage 2 for each missing round of `requests`, whose missing rounds are the same."""
    spans = [round_seconds(request.duration, request.rounds)[request.completed_rounds :] for request in requests]
    rounds = range(len(spans[0]))
    conditional = [
        [interpolation_text(tokenizer, request.prompt, span[n]) for request, span in zip(requests, spans)]
        for n in rounds
    ]
    if guidance_scale == 1.0:
        return InterpolationTexts(conditional)
    unconditional = [[unconditional_text(tokenizer, preset, span[n]) for span in spans] for n in rounds]
    return InterpolationTexts(conditional, unconditional)


def check_initial_tokens(model: ModelConfig, given: TokenFrames) -> None:
    """Check that `given` are frames of this model. Raises RequestError."""
    rows = given.rows()
    if len(rows[0]) != model.tokens_per_frame or max(map(max, rows)) >= model.image_tokens:
        raise RequestError(*message("generation.other_model_frames"))
