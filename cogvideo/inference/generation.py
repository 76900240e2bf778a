"""Several requests at once -> their videos, tokens [B, F, N] in one pass of each network; the same as one by one.

The noise of a token is a function of its seed, stage, frame and slot alone, so who else is in the batch does not matter
(but for rounding, which may tip a draw between two tokens that are equally good).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cogvideo.config import FRAME_COUNTS
from cogvideo.events import Frames, Loading, Progress, StageName
from cogvideo.inference import interpolation, keyframes, super_resolution
from cogvideo.pipeline import LOOKAHEAD_TOKENS, interpolation_texts, keyframe_texts
from cogvideo.request import VideoRequest, tokens_per_stage
from cogvideo.runtime.device import torch_threads
from cogvideo.runtime.placement import on_device, upscaler_on_device
from cogvideo.tokenizers.text import superres_text

if TYPE_CHECKING:
    from cogvideo.pipeline import CogVideoPipeline

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Drawn:
    """One of the videos is finished; they come in the order of the requests."""

    index: int
    frames: Frames  # [F, H, W, 3]
    keyframes: Tensor  # [5, N], int64 on the CPU


def draw(
    pipeline: CogVideoPipeline,
    requests: Sequence[VideoRequest],
    between_rows: int = interpolation.MAX_ROWS,
    stop: Stop | None = None,
) -> Iterator[Loading | Progress | Drawn]:
    """Draws requests, checked by the pipeline, that differ in prompt, seed and given keyframes alone.

    Either all of them have keyframes (`clip` of 5 frames) or none. `between_rows`: blocks of five frames that stage 2
    reads at once. Raises CapacityError, WeightsError, Cancelled.
    """
    with pipeline.unload_on_oom():
        yield from pipeline.loading()
        run = _Batch(pipeline, requests, between_rows, stop or (lambda: False))
        if requests[0].initial_tokens is None:
            yield from run.keyframes()
        else:
            run.take_given()
        yield from run.interpolate()
        yield from run.finish()


class _Batch:
    """B videos on their way: `clip` [B, F, N] grows."""

    def __init__(
        self, pipeline: CogVideoPipeline, requests: Sequence[VideoRequest], between_rows: int, stop: Stop
    ) -> None:
        self.preset, self.place = pipeline.preset, pipeline.place
        self.tokenizer, self.sampler, self.codec, self.models = pipeline.components()
        self.requests, self.stop = requests, stop
        self.between_rows = min(between_rows, self.place.memory.max_batch_rows)
        self.like = requests[0]
        self.options = self.like.sampling or self.preset.sampling
        self.total = len(requests) * sum(tokens_per_stage(self.preset.model, self.like).values())
        self.done = 0
        self.clip: Tensor

    def take_given(self) -> None:
        given = [request.initial_tokens for request in self.requests]
        self.clip = torch.tensor([clip.rows() for clip in given if clip is not None], device=self.sampler.device)

    def keyframes(self) -> Iterator[Progress]:
        seeds = [request.seed for request in self.requests]
        texts = keyframe_texts(
            self.tokenizer, self.preset, [r.wish for r in self.requests], self.options.guidance_scale
        )
        ahead = LOOKAHEAD_TOKENS if self.place.device.type == "cpu" else 1
        with on_device(self.models.stage1, self.place) as lm, torch_threads(1):
            wish = seeds, self.stop, ahead, None, self.place.memory.max_batch_rows
            for step in keyframes.generate_keyframes(lm, texts, self.sampler, self.options, *wish):
                yield self._progress("keyframes", step.tokens)
        self.clip = step.video_tokens

    def interpolate(self) -> Iterator[Progress]:
        """Fills in the frames between, round by round: `clip` [B, 5, N] -> [B, 9, 17 or 33, N]; with 5, nothing."""
        if not self.like.rounds:
            return
        texts, away = interpolation_texts(
            self.tokenizer, self.preset, self.requests, self.options.interpolation_guidance_scale
        )
        seeds = [r.seed if r.interpolation_seed is None else r.interpolation_seed for r in self.requests]
        wish = self.options.video, self.options.text_attention_bias, seeds, self.stop, self.between_rows
        with on_device(self.models.stage2, self.place) as lm, torch_threads(1):
            for step in interpolation.interpolate(lm, self.clip, texts, self.sampler, *wish, guidance=away):
                yield self._progress("interpolate", step.tokens)
                if step.clip is not None:
                    self.clip = step.clip

    def finish(self) -> Iterator[Progress | Drawn]:
        """Tokens of the clip -> one Drawn for each video: enlarged, if that was asked for, and decoded to pixels."""
        if not self.like.superres:
            for index, tokens in enumerate(self.clip):
                yield self._drawn(index, self.codec.decode(tokens, self.preset.model.grid))
            return
        lm = self.models.superres
        with upscaler_on_device(lm, self.place) as layers, torch_threads():
            for index, (request, tokens) in enumerate(zip(self.requests, self.clip)):
                fine = []
                wish = self.options.superres, request.seed, self.place.memory.frames_per_pass, self.stop
                text = superres_text(self.tokenizer, request.prompt)
                for part in super_resolution.upscale(lm, tokens, text, self.sampler, *wish, layers):
                    fine.append(part.tokens)
                    yield self._progress("superres", part.tokens.numel())
                yield self._drawn(index, self.codec.decode_upscaled(torch.cat(fine), tokens, self.preset))

    def _drawn(self, index: int, frames: Frames) -> Drawn:
        step = (self.clip.shape[1] - 1) // (FRAME_COUNTS[0] - 1)
        return Drawn(index, frames, self.clip[index, ::step].cpu())

    def _progress(self, stage: StageName, tokens: int) -> Progress:
        self.done += tokens
        return Progress(stage, self.done, self.total)
