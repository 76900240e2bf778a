"""Choice of the default model. It reads no weights, and imports torch only if the model's files exist."""

from __future__ import annotations

import os
from typing import Final

from cogvideo.config import PRESETS
from cogvideo.weights.catalog import WeightPaths

ENVIRONMENT: Final = "COGVIDEO_MODEL"


def default_model(device: str | None = None) -> str:
    """Return the name of the default model.

    It is $COGVIDEO_MODEL if set, `cogvideo` if its files are complete and a GPU can hold it, otherwise `mini`.
    `device`: as in `CogVideoPipeline.from_pretrained`. `cogvideo` is never chosen for a CPU, on which a video takes
    hours.
    """
    if name := os.environ.get(ENVIRONMENT):
        return name
    if (device is None or device.startswith("cuda")) and WeightPaths.usual().complete():
        from cogvideo.runtime.device import has_room

        if has_room(PRESETS["cogvideo"].model, device):
            return "cogvideo"
    return "mini"


def local_rank_device() -> str | None:
    """Return the GPU of this process of a distributed launch, "cuda:N" for local rank N. None: any device.

    `accelerate launch` and torchrun set LOCAL_RANK to the number of a process on its machine.
    """
    rank = os.environ.get("LOCAL_RANK", "")
    if not rank.isdigit():
        return None
    import torch

    count = torch.cuda.device_count()
    return f"cuda:{int(rank) % count}" if count else None
