"""A toy task in the synthetic world, for tests of training."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from cogvideo.config import ASSETS, PRESETS, Preset
from cogvideo.data import synthetic_render
from cogvideo.data.synthetic_world import sample_held_out
from cogvideo.tokenizers.text import TextTokenizer
from cogvideo.training.initialization import init_structured
from cogvideo.training.joint_models import JointModels
from cogvideo.training.joint_task import JointTask, JointTaskOptions
from cogvideo.training.trainer import TrainerOptions

needs_font = pytest.mark.skipif(
    not any(path.exists() for path in synthetic_render.FONT_PATHS),
    reason="rendering the world requires fonts-noto-color-emoji",
)
SMALL: Preset = dataclasses.replace(
    PRESETS["mini"], model=dataclasses.replace(PRESETS["mini"].model, layers=2, hidden=64, heads=2)
)
OPTIONS = TrainerOptions(
    steps=12, learning_rate=3e-3, muon_learning_rate=5e-3, warmup=2, ema_decay=0.9, save_minutes=0.0
)


def brightness_tokens(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Tokenise frames by each patch's mean brightness in 64 steps."""
    count, height, width = pixels.shape[:3]
    patches = pixels.reshape(count, height // 8, 8, width // 8, 8, 3).mean((2, 4, 5))
    return torch.from_numpy((patches.reshape(count, -1) / 4).astype(np.int64))


def small_task(seed: int = 0) -> JointTask:
    torch.manual_seed(seed)
    models = JointModels(SMALL)
    init_structured(models)
    tokenizer = TextTokenizer(ASSETS / "mini" / "text.model", SMALL.model.image_tokens)
    options = JointTaskOptions(images=4, clips=2, windows=2, superres=1)
    return JointTask(models, SMALL, tokenizer, brightness_tokens, sample_held_out(), options)
