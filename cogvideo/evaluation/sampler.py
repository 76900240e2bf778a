"""Prompts of the small world -> decoded clips, many at once: what `evaluate` looks at.

Texts, sampling and seeds are those of the pipeline, so that a clip of the studio is the clip that a user gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cogvideo.config import FRAME_COUNTS, Preset, SamplingOptions
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENES
from cogvideo.data.synthetic_world import Clip, HeldOut, caption, place_clip, sample_clip, sample_held_out
from cogvideo.inference import interpolation, keyframes, super_resolution
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.models.loader import load_safetensors
from cogvideo.pipeline import keyframe_texts
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.tokenizers.text import TextTokenizer, interpolation_text, round_seconds, superres_text
from cogvideo.training.joint_models import JointModels
from cogvideo.training.joint_task import JointTask, JointTaskOptions

Pixels = npt.NDArray[np.uint8]
BATCH = 20
ROUNDS = len(FRAME_COUNTS) - 1


@dataclass(frozen=True)
class EvaluationCase:
    """A prompt, the clip it describes, and whether training never showed its combination."""

    prompt: str
    clip: Clip
    held_out: bool
    seed: int


def draw_cases(count: int, seed: int, held_out: HeldOut) -> list[EvaluationCase]:
    """`count` prompts, every fourth from the held-out pairs, two of three over four seconds, the third over two."""
    rng = np.random.default_rng((seed, 7))
    cases = []
    for index in range(count):
        duration = (4.0, 2.0)[index % 3 == 2]
        hidden = index % 4 == 3
        clip = held_out_clip(rng, held_out, duration) if hidden else sample_clip(rng, held_out, duration)
        cases.append(EvaluationCase(caption(rng, clip, partial=0.0), clip, hidden, int(rng.integers(2**32))))
    return cases


def held_out_clip(rng: np.random.Generator, held_out: HeldOut, duration: float) -> Clip:
    """A clip that training never shows, half of them for the motion and half for the scene."""
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
        self.tokenizer = TextTokenizer(folder / "text.model", preset.model.image_tokens)
        self.codec = ImageTokenizer.load(preset, folder=folder)
        self.models = load_safetensors(folder, preset.model)
        labels = np.load(folder / "cluster_labels.npy", allow_pickle=False).astype(np.int64)
        self.sampler = ClusterSampler(torch.from_numpy(labels))

    @torch.inference_mode()
    def keyframes(self, cases: Sequence[EvaluationCase], options: SamplingOptions) -> Tensor:
        """Tokens [cases, 5, N] of all cases."""
        parts = [self._keyframes(cases[i : i + BATCH], options) for i in range(0, len(cases), BATCH)]
        return torch.cat(parts)

    @torch.inference_mode()
    def videos(self, cases: Sequence[EvaluationCase], clips: Tensor, options: SamplingOptions) -> Tensor:
        """Keyframes [cases, 5, N] -> tokens [cases, 33, N]."""
        parts = [self._videos(cases[i : i + BATCH], clips[i : i + BATCH], options) for i in range(0, len(cases), BATCH)]
        return torch.cat(parts)

    @torch.inference_mode()
    def enlarge(self, prompt: str, clip: Tensor, options: SamplingOptions, seed: int) -> Pixels:
        """Tokens [F, N] of one prompt's frames -> super-resolved frames [F, H, W, 3]."""
        text = superres_text(self.tokenizer, prompt)
        parts = super_resolution.upscale(self.models.superres, clip, text, self.sampler, options.superres, seed, BATCH)
        return self.codec.decode_upscaled(torch.cat([part.tokens for part in parts]), clip, self.preset)

    def task(self) -> JointTask:
        """What these networks were trained for, with nothing spoilt: what they know of clips of the world."""
        options = JointTaskOptions(corruption_rate=0.0)
        models = cast(JointModels, self.models)  # of which it asks for the networks alone
        return JointTask(models, self.preset, self.tokenizer, self.codec.encode, sample_held_out(), options)

    def show(self, tokens: Tensor) -> Pixels:
        """Tokens [..., N] -> frames [..., H, W, 3]."""
        frames = self.codec.decode(tokens.flatten(0, -2), self.preset.model.grid)
        return frames.reshape(*tokens.shape[:-1], *frames.shape[1:])

    def _keyframes(self, cases: Sequence[EvaluationCase], options: SamplingOptions) -> Tensor:
        wishes = [(case.prompt, case.clip.duration) for case in cases]
        texts = keyframe_texts(self.tokenizer, self.preset, wishes, options.guidance_scale)
        *_, last = keyframes.generate_keyframes(
            self.models.stage1, texts, self.sampler, options, [case.seed for case in cases]
        )
        return last.video_tokens

    def _videos(self, cases: Sequence[EvaluationCase], clips: Tensor, options: SamplingOptions) -> Tensor:
        spans = [round_seconds(case.clip.duration, ROUNDS) for case in cases]
        texts = [
            [
                interpolation_text(self.tokenizer, case.prompt, span[level])
                for case, span in zip(cases, spans, strict=True)
            ]
            for level in range(ROUNDS)
        ]
        steps = interpolation.interpolate(
            self.models.stage2,
            clips,
            texts,
            self.sampler,
            options.video,
            options.text_attention_bias,
            [case.seed for case in cases],
        )
        *_, last = steps
        assert last.clip is not None
        return last.clip
