"""Small networks of unusual sizes with random weights, for tests of the models."""

from __future__ import annotations

import torch

from cogvideo.config import ModelConfig
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM

CONFIG = ModelConfig(
    layers=3,
    hidden=24,
    heads=3,
    vocab_size=70,
    image_tokens=50,
    start_of_image=67,
    grid=(4, 6),
    text_length=9,
    image_start=12,
    base_positions=40,
    extra_positions=100,
    window=2,
    upscale=3,
    superres_text_length=8,
    fine_window=(5, 3),
    coarse_window=(3, 3),
)


def randomise(lm: torch.nn.Module) -> None:
    """Weights large enough for every mask and position to matter, small enough for attention to stay soft."""
    for name, weight in lm.named_parameters():
        spread = 0.3 if weight.dim() > 1 else 0.1
        torch.nn.init.normal_(weight, std=spread)
        if "layernorm.weight" in name:
            weight.data.add_(1.0)


def video_lm(stage: int, config: ModelConfig = CONFIG) -> VideoLM:
    torch.manual_seed(stage)
    lm = VideoLM(config, 1 if stage == 1 else 2)
    randomise(lm)
    return lm.eval()


def superres_lm(config: ModelConfig = CONFIG) -> SuperResLM:
    torch.manual_seed(3)
    lm = SuperResLM(config)
    randomise(lm)
    return lm.eval()


def random_frames(*shape: int, config: ModelConfig = CONFIG) -> torch.Tensor:
    """Image tokens [*shape, N]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.image_tokens, (*shape, config.tokens_per_frame), generator=generator)
