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

from cogvideo.config import CLIP_FRAMES, Preset, SamplingOptions
from cogvideo.data.synthetic_vocabulary import MOTIONS, SCENES
from cogvideo.data.synthetic_world import Clip, HeldOut, caption, draw_held_out, place_clip, sample_clip
from cogvideo.inference import interpolation, keyframes, super_resolution
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.models.loader import load_safetensors
from cogvideo.pipeline import keyframe_texts
from cogvideo.tokenizers.image import FrameCodec
from cogvideo.tokenizers.text import TextTokenizer, between_text, round_seconds, superres_text
from cogvideo.training.joint_models import WorldModels
from cogvideo.training.joint_task import ObjectiveOptions, WorldTask

Pixels = npt.NDArray[np.uint8]
BATCH = 20
ROUNDS = len(CLIP_FRAMES) - 1


@dataclass(frozen=True)
class Case:
    """A prompt, the clip it describes, and whether training never showed its combination."""

    prompt: str
    clip: Clip
    held_out: bool
    seed: int


def draw_cases(count: int, seed: int, held_out: HeldOut) -> list[Case]:
    """`count` prompts, every fourth from the held-out pairs, two of three over four seconds, the third over two."""
    rng = np.random.default_rng((seed, 7))
    cases = []
    for index in range(count):
        duration = (4.0, 2.0)[index % 3 == 2]
        hidden = index % 4 == 3
        clip = hidden_clip(rng, held_out, duration) if hidden else sample_clip(rng, held_out, duration)
        cases.append(Case(caption(rng, clip, partial=0.0), clip, hidden, int(rng.integers(2**32))))
    return cases


def hidden_clip(rng: np.random.Generator, held_out: HeldOut, duration: float) -> Clip:
    """A clip that training never shows, half of them for the motion and half for the scene."""
    if rng.random() < 0.5:
        pairs = sorted(held_out.subject_motion)
        subject, motion = pairs[int(rng.integers(len(pairs)))]
        return place_clip(rng, subject, int(rng.integers(len(SCENES))), motion, duration)
    pairs = sorted(held_out.subject_scene)
    subject, scene = pairs[int(rng.integers(len(pairs)))]
    return place_clip(rng, subject, scene, int(rng.integers(len(MOTIONS))), duration)


class Studio:
    """Draws many cases at once with the model in `folder`."""

    def __init__(self, preset: Preset, folder: Path) -> None:
        self.preset = preset
        self.tokenizer = TextTokenizer(folder / "text.model", preset.model.image_tokens)
        self.codec = FrameCodec.load(preset, folder=folder)
        self.models = load_safetensors(folder, preset.model)
        labels = np.load(folder / "cluster_labels.npy", allow_pickle=False).astype(np.int64)
        self.sampler = ClusterSampler(torch.from_numpy(labels))

    @torch.inference_mode()
    def keyframes(self, cases: Sequence[Case], options: SamplingOptions) -> Tensor:
        """Tokens [cases, 5, N] of all cases."""
        parts = [self._keyframes(cases[i : i + BATCH], options) for i in range(0, len(cases), BATCH)]
        return torch.cat(parts)

    @torch.inference_mode()
    def films(self, cases: Sequence[Case], clips: Tensor, options: SamplingOptions) -> Tensor:
        """Keyframes [cases, 5, N] -> tokens [cases, 33, N]."""
        parts = [self._films(cases[i : i + BATCH], clips[i : i + BATCH], options) for i in range(0, len(cases), BATCH)]
        return torch.cat(parts)

    @torch.inference_mode()
    def enlarge(self, prompt: str, clip: Tensor, options: SamplingOptions, seed: int) -> Pixels:
        """Tokens [F, N] of one prompt's frames -> super-resolved frames [F, H, W, 3]."""
        text = superres_text(self.tokenizer, prompt)
        parts = super_resolution.draw(self.models.superres, clip, text, self.sampler, options.superres, seed, BATCH)
        return self.codec.decode_enlarged(torch.cat([part.tokens for part in parts]), clip, self.preset)

    def task(self) -> WorldTask:
        """What these networks were trained for, with nothing spoilt: what they know of clips of the world."""
        options = ObjectiveOptions(spoilt=0.0)
        models = cast(WorldModels, self.models)  # of which it asks for the networks alone
        return WorldTask(models, self.preset, self.tokenizer, self.codec.encode, draw_held_out(), options)

    def show(self, tokens: Tensor) -> Pixels:
        """Tokens [..., N] -> frames [..., H, W, 3]."""
        frames = self.codec.decode(tokens.flatten(0, -2), self.preset.model.grid)
        return frames.reshape(*tokens.shape[:-1], *frames.shape[1:])

    def _keyframes(self, cases: Sequence[Case], options: SamplingOptions) -> Tensor:
        wishes = [(case.prompt, case.clip.duration) for case in cases]
        texts = keyframe_texts(self.tokenizer, self.preset, wishes, options.guidance)
        *_, last = keyframes.draw(self.models.stage1, texts, self.sampler, options, [case.seed for case in cases])
        return last.clip

    def _films(self, cases: Sequence[Case], clips: Tensor, options: SamplingOptions) -> Tensor:
        spans = [round_seconds(case.clip.duration, ROUNDS) for case in cases]
        texts = [
            [between_text(self.tokenizer, case.prompt, span[level]) for case, span in zip(cases, spans, strict=True)]
            for level in range(ROUNDS)
        ]
        steps = interpolation.draw(
            self.models.stage2,
            clips,
            texts,
            self.sampler,
            options.video,
            options.text_boost,
            [case.seed for case in cases],
        )
        *_, last = steps
        assert last.clip is not None
        return last.clip
