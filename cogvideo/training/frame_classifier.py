"""Classifier of the subject and the scene in a frame, for `evaluate`, and its training on rendered frames.

It also works on frames that the codec blurred, on which a comparison of pixels confuses subjects. Training degrades
rendered frames by blur and noise and mixes subjects. "No subject" is a class: for empty scenes, and for mixtures of two
subjects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from cogvideo.config import ASSETS
from cogvideo.data.synthetic_render import COARSE, render_state
from cogvideo.data.synthetic_vocabulary import SCENES, SUBJECTS
from cogvideo.data.synthetic_world import FIELD, FINEST_TURN, State
from cogvideo.errors import WeightsError
from cogvideo.events import Frames
from cogvideo.messages import message

NOTHING: Final = len(SUBJECTS)
"""Class of a frame without a subject of the world."""
FILE: Final = "judge.safetensors"
SIDE: Final = FIELD * COARSE
"""Side of the classifier's input in pixels."""
_WIDTHS: Final = (32, 64, 96, 128)


@dataclass(frozen=True)
class FrameClassifierOptions:
    """Frames of a training step."""

    batch: int = 96
    """Frames in a step."""
    nothing: float = 0.06
    """Fraction of empty scenes."""
    patched: float = 0.3
    """Fraction of subjects with some cells of another subject."""
    still_one: float = 0.2
    """Largest fraction of foreign cells in a subject that keeps its class."""
    made_of_two: float = 0.35
    """Smallest fraction of foreign cells in a subject with the class `NOTHING`."""


class FrameClassifier(nn.Module):
    """Maps frames [B, 3, 64, 64] in 0..1 to logits of subjects [B, 25], the last for `NOTHING`, and scenes [B, 6]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.subject = nn.Linear(2 * _WIDTHS[-1], len(SUBJECTS) + 1)
        self.scene = nn.Linear(2 * _WIDTHS[-1], len(SCENES))

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(frames)  # [B, C, 4, 4]
        pooled = torch.cat((features.amax((2, 3)), features.mean((2, 3))), dim=1)
        return self.subject(pooled), self.scene(pooled)


def classify_frames(frames: Frames) -> list[tuple[int, int]]:
    """Return (subject, scene) of frames [F, H, W, 3] of either size; subject -1: no subject of the world.

    Raises WeightsError if the classifier's weights are missing.
    """
    factor = frames.shape[1] // SIDE
    pixels = torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        subjects, scenes = (logits.argmax(1).tolist() for logits in _shipped()(F.avg_pool2d(pixels, factor)))
    return [(-1 if s == NOTHING else s, scene) for s, scene in zip(subjects, scenes, strict=True)]


@lru_cache(maxsize=1)
def _shipped() -> FrameClassifier:
    path = ASSETS / "mini" / FILE
    if not path.is_file():
        raise WeightsError(*message("frame_classifier.weights_missing", path=path))
    classifier = FrameClassifier()
    classifier.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return classifier.eval()


class FrameClassifierTask:
    """Loss of the classifier for the training loop."""

    def __init__(self, options: FrameClassifierOptions, seed: int) -> None:
        self.classifier = FrameClassifier()
        self.options = options
        self.seed = seed

    @property
    def module(self) -> nn.Module:
        return self.classifier

    @property
    def trainable(self) -> nn.Module:
        return self.classifier

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Compute the sum of both cross-entropies in nats; the accuracy on subjects for the log."""
        rng = np.random.default_rng((self.seed, micro_batch, step))
        frames, subjects, scenes = self.sample_frames(rng)
        subject_logits, scene_logits = self.classifier(degrade(frames, rng))
        loss = F.cross_entropy(subject_logits, subjects) + F.cross_entropy(scene_logits, scenes)
        return loss, {"right": float((subject_logits.argmax(1) == subjects).float().mean())}

    def sample_frames(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sample frames [B, 3, 64, 64] in 0..1 with their subjects and scenes [B]."""
        rows = [_sample_frame(rng, self.options) for _ in range(self.options.batch)]
        frames = torch.from_numpy(np.stack([frame for frame, _, _ in rows]).astype(np.float32)) / 255
        device = next(self.classifier.parameters()).device
        subjects, scenes = (torch.tensor([row[i] for row in rows], device=device) for i in (1, 2))
        return frames.permute(0, 3, 1, 2).to(device), subjects, scenes

    def preview_image(self) -> Frames:
        """Return sixteen training frames in two rows."""
        rng = np.random.default_rng(self.seed)
        frames = degrade(self.sample_frames(rng)[0][:16], rng)
        pixels = frames.clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).cpu().numpy()
        return np.concatenate([np.concatenate(list(row), axis=1) for row in np.array_split(pixels, 2)])


def _sample_frame(rng: np.random.Generator, options: FrameClassifierOptions) -> tuple[Frames, int, int]:
    """Sample a frame [64, 64, 3], its subject and its scene: any subject in any pose and scene, held-out pairs too."""
    scene, variant = int(rng.integers(len(SCENES))), int(rng.integers(2))
    subject = int(rng.integers(len(SUBJECTS)))
    size = float(rng.choice((1.5, 2, 2.5, 3, 3.5, 4)))
    half = max(size / 2 - 0.5, 0.5)  # the frame may cut off a little of the subject
    y, x = (round(rng.uniform(half, FIELD - half) * COARSE) / COARSE for _ in range(2))
    turned = rng.random() < 0.5
    state = State(y, x, size, FINEST_TURN * int(rng.integers(round(360 / FINEST_TURN))) if turned else 0.0)
    if rng.random() < options.nothing:
        return render_state(subject, scene, variant, State(-FIELD, -FIELD, size, 0.0))[0], NOTHING, scene
    frame, mask = render_state(subject, scene, variant, state)
    if rng.random() > options.patched:
        return frame, subject, scene
    other, _ = render_state((subject + int(rng.integers(1, len(SUBJECTS)))) % len(SUBJECTS), scene, variant, state)
    cells = mask.reshape(FIELD, COARSE, FIELD, COARSE).max((1, 3)) > 0  # [8, 8]
    is_one = rng.random() < 0.5
    fraction = rng.uniform(0, options.still_one) if is_one else rng.uniform(options.made_of_two, 0.5)
    foreign = _sample_cells(rng, cells, fraction).repeat(COARSE, 0).repeat(COARSE, 1)
    return np.where(foreign[..., None], other, frame), subject if is_one else NOTHING, scene


def _sample_cells(rng: np.random.Generator, cells: npt.NDArray[np.bool_], fraction: float) -> npt.NDArray[np.bool_]:
    """Sample a fraction of the cells that are true."""
    places = np.flatnonzero(cells)
    chosen = np.zeros(cells.size, bool)
    chosen[rng.choice(places, round(fraction * len(places)), replace=False)] = True
    return chosen.reshape(cells.shape)


def degrade(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur frames [B, 3, H, W] up to four times and add coarse and fine noise, similar to a codec's errors."""
    count, side = len(frames), frames.shape[-1]
    times = torch.from_numpy(rng.integers(0, 5, (count, 1, 1, 1))).to(frames.device)
    row = frames.new_tensor((0.25, 0.5, 0.25))
    kernel = torch.outer(row, row).expand(3, 1, 3, 3)
    for number in range(4):
        blurred = F.conv2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
        frames = torch.where(times > number, blurred, frames)
    for cells in (side // COARSE, side):
        noise = torch.from_numpy(rng.standard_normal((count, 3, cells, cells), dtype=np.float32)).to(frames.device)
        strength = torch.from_numpy(rng.uniform(0, 0.05, (count, 1, 1, 1)).astype(np.float32)).to(frames.device)
        frames = frames + strength * F.interpolate(noise, size=(side, side), mode="bilinear")
    return frames
