"""The judge's eye: which subject and which scene a frame shows. A small classifier that learnt from drawings alone.

It sees what a person sees of a frame that the codec blurred, where a comparison of pixels takes a pig before a desert
sky for something smaller. Drawings are blurred, noisy and patched together for it, and it may say "nothing I know":
for an empty scene, and for a subject that is made of two.
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
from cogvideo.data.synthetic_render import COARSE, Pixels, render_state
from cogvideo.data.synthetic_vocabulary import SCENES, SUBJECTS
from cogvideo.data.synthetic_world import FIELD, FINEST_TURN, State
from cogvideo.errors import WeightsError

NOTHING: Final = len(SUBJECTS)
"""Class of a frame that shows no subject of the world."""
FILE: Final = "judge.safetensors"
SIDE: Final = FIELD * COARSE
_WIDTHS: Final = (32, 64, 96, 128)


@dataclass(frozen=True)
class FrameClassifierOptions:
    """What a step's drawings are like."""

    batch: int = 96
    nothing: float = 0.06
    """Share of empty scenes."""
    patched: float = 0.3
    """Share of subjects of which some cells show another one."""
    still_one: float = 0.2
    made_of_two: float = 0.35
    """Shares of foreign cells up to which a patched subject is what it was, and from which it is nothing known."""


class FrameClassifier(nn.Module):
    """Frames [B, 3, 64, 64] in 0..1 -> logits of subjects [B, 25] (the last: nothing) and of scenes [B, 6]."""

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
        seen = torch.cat((features.amax((2, 3)), features.mean((2, 3))), dim=1)
        return self.subject(seen), self.scene(seen)


def classify_frames(frames: Pixels) -> list[tuple[int, int]]:
    """Frames [F, H, W, 3] of the world's small or large size -> (subject, scene) of each; subject -1: nothing known."""
    factor = frames.shape[1] // SIDE
    pixels = torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        subjects, scenes = (logits.argmax(1).tolist() for logits in _shipped()(F.avg_pool2d(pixels, factor)))
    return [(-1 if s == NOTHING else s, scene) for s, scene in zip(subjects, scenes, strict=True)]


@lru_cache(maxsize=1)
def _shipped() -> FrameClassifier:
    path = ASSETS / "mini" / FILE
    if not path.is_file():
        raise WeightsError(
            f"找不到评委的权重 {path}：请重新克隆本仓库，或运行 train examples/train_mini.toml --part judge。",
            f"The judge's weights {path} are missing: clone the repository anew, or make them with "
            "train examples/train_mini.toml --part judge.",
        )
    eye = FrameClassifier()
    eye.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return eye.eval()


class FrameClassifierTask:
    """Loss of the eye for the training loop: the subject's class, and the scene's."""

    def __init__(self, options: FrameClassifierOptions, seed: int) -> None:
        self.eye = FrameClassifier()
        self.options = options
        self.seed = seed

    @property
    def module(self) -> nn.Module:
        return self.eye

    @property
    def trainable(self) -> nn.Module:
        return self.eye

    def loss(self, step: int, micro_batch: int = 0, num_micro_batches: int = 1) -> tuple[Tensor, dict[str, float]]:
        """Sum of both cross-entropies in nats; how many subjects were named rightly."""
        rng = np.random.default_rng((self.seed, micro_batch, step))
        frames, subjects, scenes = self.draw(rng)
        seen = self.eye(degrade(frames, rng))
        loss = F.cross_entropy(seen[0], subjects) + F.cross_entropy(seen[1], scenes)
        return loss, {"right": float((seen[0].argmax(1) == subjects).float().mean())}

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Frames [B, 3, 64, 64] in 0..1 with their subjects and scenes [B]."""
        drawn = [_draw_one(rng, self.options) for _ in range(self.options.batch)]
        frames = torch.from_numpy(np.stack([frame for frame, _, _ in drawn]).astype(np.float32)) / 255
        device = next(self.eye.parameters()).device
        subjects, scenes = (torch.tensor([row[i] for row in drawn], device=device) for i in (1, 2))
        return frames.permute(0, 3, 1, 2).to(device), subjects, scenes

    def preview_image(self) -> Pixels:
        """Sixteen of the frames that it learns from, in two rows."""
        rng = np.random.default_rng(self.seed)
        frames = degrade(self.draw(rng)[0][:16], rng).clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).cpu().numpy()
        return np.concatenate([np.concatenate(list(row), axis=1) for row in np.array_split(frames, 2)])


def _draw_one(rng: np.random.Generator, options: FrameClassifierOptions) -> tuple[Pixels, int, int]:
    """A frame [64, 64, 3], its subject and scene: any subject in any state anywhere, nothing is kept from a judge."""
    scene, variant = int(rng.integers(len(SCENES))), int(rng.integers(2))
    subject = int(rng.integers(len(SUBJECTS)))
    size = float(rng.choice((1.5, 2, 2.5, 3, 3.5, 4)))
    half = max(size / 2 - 0.5, 0.5)  # a little of it may be cut off
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
    few = rng.random() < 0.5
    share = rng.uniform(0, options.still_one) if few else rng.uniform(options.made_of_two, 0.5)
    foreign = _pick(rng, cells, share).repeat(COARSE, 0).repeat(COARSE, 1)
    return np.where(foreign[..., None], other, frame), subject if few else NOTHING, scene


def _pick(rng: np.random.Generator, cells: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.bool_]:
    """`share` of the cells that are true, rounded."""
    places = np.flatnonzero(cells)
    picked = np.zeros(cells.size, bool)
    picked[rng.choice(places, round(share * len(places)), replace=False)] = True
    return picked.reshape(cells.shape)


def degrade(frames: Tensor, rng: np.random.Generator) -> Tensor:
    """Frames [B, 3, H, W] -> blurred up to four times, with coarse and fine noise, as a codec might leave them."""
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
