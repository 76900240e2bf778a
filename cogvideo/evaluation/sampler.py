"""Prompts of the synthetic world, and videos that a model generates for them, many at once.

Texts, sampling and seeds are those of the pipeline, so the videos are those that a user gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from cogvideo.config import FRAME_COUNTS, Preset, SamplingOptions
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENES
from cogvideo.data.synthetic_world import Clip, HeldOut, caption, place_clip, sample_clip, sample_held_out
from cogvideo.events import Frames
from cogvideo.inference.decoding import MAX_ROWS
from cogvideo.inference.generation import GeneratedVideo, GenerationOptions, PipelineComponents, VideoGenerator
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.inference.super_resolution import UpscaleOptions, upscale
from cogvideo.models.loader import load_safetensors
from cogvideo.request import VideoRequest
from cogvideo.runtime.device import DevicePlacement
from cogvideo.runtime.memory_presets import MEMORY_PRESETS
from cogvideo.token_frames import TokenFrames
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.tokenizers.text import TextTokenizer, superres_text
from cogvideo.training.joint_models import JointModels
from cogvideo.training.joint_task import JointTask, JointTaskOptions

BATCH = 20


@dataclass(frozen=True)
class EvaluationCase:
    """A prompt, the clip that it describes, whether the clip is held out, and the seed of its video."""

    prompt: str
    clip: Clip
    held_out: bool
    seed: int


def draw_cases(count: int, seed: int, held_out: HeldOut) -> list[EvaluationCase]:
    """Sample `count` cases: every fourth with a held-out pair, two of three over four seconds, the third over two."""
    rng = np.random.default_rng((seed, 7))
    cases = []
    for index in range(count):
        duration = (4.0, 2.0)[index % 3 == 2]
        is_held_out = index % 4 == 3
        clip = held_out_clip(rng, held_out, duration) if is_held_out else sample_clip(rng, held_out, duration)
        cases.append(EvaluationCase(caption(rng, clip, partial=0.0), clip, is_held_out, int(rng.integers(2**32))))
    return cases


def held_out_clip(rng: np.random.Generator, held_out: HeldOut, duration: float) -> Clip:
    """Sample a clip with a held-out pair: in half of the cases of subject and motion, else of subject and scene."""
    if rng.random() < 0.5:
        pairs = sorted(held_out.subject_motion)
        subject, motion = pairs[int(rng.integers(len(pairs)))]
        return place_clip(rng, subject, int(rng.integers(len(SCENES))), motion, duration)
    pairs = sorted(held_out.subject_scene)
    subject, scene = pairs[int(rng.integers(len(pairs)))]
    return place_clip(rng, subject, scene, int(rng.integers(len(MOTIONS))), duration)


class EvaluationSampler:
    """Draws many cases at once with the model in `folder`."""

    def __init__(self, preset: Preset, folder: Path) -> None:
        self.preset = preset
        memory = replace(MEMORY_PRESETS["cpu"], max_batch_rows=MAX_ROWS)
        self.placement = DevicePlacement(torch.device("cpu"), torch.float32, memory)
        labels = np.load(folder / "cluster_labels.npy", allow_pickle=False).astype(np.int64)
        self.components = PipelineComponents(
            TextTokenizer(folder / "text.model", preset.model.image_tokens),
            ClusterSampler(torch.from_numpy(labels)),
            ImageTokenizer.load(preset, folder=folder),
            load_safetensors(folder, preset.model),
        )

    @property
    def codec(self) -> ImageTokenizer:
        """The image tokenizer of the model."""
        return self.components.codec

    def keyframes(self, cases: Sequence[EvaluationCase], options: SamplingOptions) -> Tensor:
        """Generate the keyframes of all cases: tokens [cases, 5, N]."""
        return self._tokens([_request(case, FRAME_COUNTS[0], options) for case in cases])

    def videos(self, cases: Sequence[EvaluationCase], tokens: Tensor, options: SamplingOptions) -> Tensor:
        """Interpolate between keyframes [cases, 5, N]: tokens [cases, 33, N]."""
        keyframes = [TokenFrames.of(video) for video in tokens.tolist()]
        requests = [_request(case, FRAME_COUNTS[-1], options) for case in cases]
        return self._tokens([replace(r, initial_tokens=k) for r, k in zip(requests, keyframes, strict=True)])

    def upscale(self, prompt: str, tokens: Tensor, options: SamplingOptions, seed: int) -> Frames:
        """Upscale the frames of one prompt, tokens [F, N] -> [F, H, W, 3]."""
        text = superres_text(self.components.tokenizer, prompt)
        lm, sampler = self.components.models.superres, self.components.sampler
        with torch.inference_mode():
            parts = upscale(lm, tokens, text, sampler, options.superres, seed, UpscaleOptions(BATCH))
            fine = torch.cat([part.tokens for part in parts])
        return self.codec.decode_upscaled(fine, tokens, self.preset)

    def task(self) -> JointTask:
        """Return the training task of these networks, without corruption, to measure their accuracy."""
        options = JointTaskOptions(corruption_rate=0.0)
        models = cast(JointModels, self.components.models)  # the task reads only the three networks
        return JointTask(models, self.preset, self.components.tokenizer, self.codec.encode, sample_held_out(), options)

    def show(self, tokens: Tensor) -> Frames:
        """Decode tokens [..., N] to frames [..., H, W, 3]."""
        frames = self.codec.decode(tokens.flatten(0, -2), self.preset.model.grid)
        return frames.reshape(*tokens.shape[:-1], *frames.shape[1:])

    def _tokens(self, requests: Sequence[VideoRequest]) -> Tensor:
        """Generate requests, `BATCH` at a time: tokens [requests, F, N]."""
        options = GenerationOptions(decode=False, max_rows=MAX_ROWS, lookahead=1)
        videos = []
        for at in range(0, len(requests), BATCH):
            batch = VideoGenerator(self.components, self.preset, self.placement, requests[at : at + BATCH], options)
            videos += [event.tokens for event in batch.events() if isinstance(event, GeneratedVideo)]
        return torch.cat(videos)


def _request(case: EvaluationCase, num_frames: int, options: SamplingOptions) -> VideoRequest:
    duration = case.clip.duration
    return VideoRequest(case.prompt, case.seed, num_frames, duration, superres=False, sampling=options)
