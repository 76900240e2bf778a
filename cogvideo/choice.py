"""Which model is taken where nobody names one. Reads no weights; imports torch only where the files are there."""

from __future__ import annotations

import os
from typing import Final

from cogvideo.config import PRESETS
from cogvideo.published import Places

ENVIRONMENT: Final = "COGVIDEO_MODEL"


def default_model(device: str | None = None) -> str:
    """$COGVIDEO_MODEL; else `cogvideo` where its files are complete and a card has room for it; else `mini`.

    `device`: as in `CogVideoPipeline.from_pretrained`. The published model is never chosen for a CPU, where a film
    takes hours.
    """
    if name := os.environ.get(ENVIRONMENT):
        return name
    if (device is None or device.startswith("cuda")) and Places.usual().complete():
        from cogvideo.device import has_room

        if has_room(PRESETS["cogvideo"].model, device):
            return "cogvideo"
    return "mini"
