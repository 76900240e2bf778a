"""The three networks with random weights on any device, for measuring: nothing is read, the backbone is made once.

In: sizes. Out: networks in evaluation mode, whose numbers stay finite and mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from cogvideo.config import ModelConfig
from cogvideo.models.attention import INIT_STD
from cogvideo.models.sat_adapter import build_transformer
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM


@dataclass(frozen=True)
class RandomModels:
    """As a loader gives them."""

    stage1: VideoLM
    stage2: VideoLM
    superres: SuperResLM


def random_models(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> RandomModels:
    """Storage is made on `device` and filled there: the published size never passes through host memory."""
    backbone = build_transformer(config, "meta")
    stage1, stage2 = VideoLM(config, 1, backbone, "meta"), VideoLM(config, 2, backbone, "meta")
    superres = SuperResLM(config, backbone, "meta")
    for part in (backbone, stage1.mixins, stage2.mixins, superres.mixins):
        _fill(part, dtype, device)
    for network in (stage1, stage2, superres):
        network.eval().requires_grad_(False)
    return RandomModels(stage1, stage2, superres)


@torch.no_grad()
def _fill(part: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Numbers of fp16, as those of a published checkpoint are, whatever the type that they are computed in."""
    part.to(dtype).to_empty(device=device)
    for name, weight in part.named_parameters():
        if weight.dim() > 1:
            weight.copy_(weight.normal_(std=INIT_STD).half())
        else:
            weight.fill_(float("layernorm.weight" in name))
