"""Which model is taken where nobody names one. Reads no weights; imports torch only where the files are there."""

from __future__ import annotations

import os
from typing import Final

from cogvideo.config import PRESETS
from cogvideo.weights.catalog import WeightPaths

ENVIRONMENT: Final = "COGVIDEO_MODEL"


def default_model(device: str | None = None) -> str:
    """$COGVIDEO_MODEL; else `cogvideo` where its files are complete and a card has room for it; else `mini`.

    `device`: as in `CogVideoPipeline.from_pretrained`. The published model is never chosen for a CPU, where a film
    takes hours.
    """
    if name := os.environ.get(ENVIRONMENT):
        return name
    if (device is None or device.startswith("cuda")) and WeightPaths.usual().complete():
        from cogvideo.runtime.device import has_room

        if has_room(PRESETS["cogvideo"].model, device):
            return "cogvideo"
    return "mini"


def local_rank_device() -> str | None:
    """The card of this process, one of several started together: cuda:N for the N-th on its machine. None: any.

    `accelerate launch` and torchrun number the processes of a machine by LOCAL_RANK.
    """
    rank = os.environ.get("LOCAL_RANK", "")
    if not rank.isdigit():
        return None
    import torch

    cards = torch.cuda.device_count()
    return f"cuda:{int(rank) % cards}" if cards else None
