"""CogVideo for everyone: Chinese text to video, keyframes first, then the frames between them.

    from cogvideo import CogVideoPipeline, VideoRequest, write_video

Everything that a program needs is imported from here; each name is loaded on first use, so that `import cogvideo`
stays quick. Names that are not listed in `__all__` may change in any version.

- Generate a video: `CogVideoPipeline`, `VideoRequest`, `SamplingOptions`, `TokenSampling`, `PRESETS`.
- Events of `CogVideoPipeline.stream`: `Event`, which is one of `Loading`, `Progress`, `KeyframePreview`,
  `KeyframeCompleted`, `RoundCompleted`, `FrameUpscaled`, `VideoCompleted`.
- Continue a video: `TokenFrames`. Read the model's geometry: `TokenLayout`.
- Write an MP4 or GIF, and read the request stored in one: `write_video`, `read_metadata`.
- Errors: `CogVideoError` and its kinds `RequestError`, `WeightsError`, `CapacityError`, `OutOfMemoryError`;
  `Cancelled` after a cancellation.
- Train on a dataset of your own: `Preset`, `ImageTokenizer`, `ClipDataset`, `TokenClip`, `to_tokens`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cogvideo.config import PRESETS, Preset, SamplingOptions, TokenSampling
    from cogvideo.data.dataset import ClipDataset, TokenClip, to_tokens
    from cogvideo.errors import (
        Cancelled,
        CapacityError,
        CogVideoError,
        OutOfMemoryError,
        RequestError,
        WeightsError,
    )
    from cogvideo.events import (
        Event,
        FrameUpscaled,
        KeyframeCompleted,
        KeyframePreview,
        Loading,
        Progress,
        RoundCompleted,
        VideoCompleted,
    )
    from cogvideo.media.metadata import read_metadata
    from cogvideo.media.video import write_video
    from cogvideo.pipeline import CogVideoPipeline
    from cogvideo.request import VideoRequest
    from cogvideo.token_frames import TokenFrames
    from cogvideo.token_layout import TokenLayout
    from cogvideo.tokenizers.image import ImageTokenizer

__version__ = "0.2.0"

__all__ = [
    "PRESETS",
    "Cancelled",
    "CapacityError",
    "ClipDataset",
    "CogVideoError",
    "CogVideoPipeline",
    "Event",
    "FrameUpscaled",
    "ImageTokenizer",
    "KeyframeCompleted",
    "KeyframePreview",
    "Loading",
    "OutOfMemoryError",
    "Preset",
    "Progress",
    "RequestError",
    "RoundCompleted",
    "SamplingOptions",
    "TokenClip",
    "TokenFrames",
    "TokenLayout",
    "TokenSampling",
    "VideoCompleted",
    "VideoRequest",
    "WeightsError",
    "read_metadata",
    "to_tokens",
    "write_video",
]

_MODULES = {
    "cogvideo.config": ("PRESETS", "Preset", "SamplingOptions", "TokenSampling"),
    "cogvideo.data.dataset": ("ClipDataset", "TokenClip", "to_tokens"),
    "cogvideo.errors": (
        "Cancelled",
        "CapacityError",
        "CogVideoError",
        "OutOfMemoryError",
        "RequestError",
        "WeightsError",
    ),
    "cogvideo.events": (
        "Event",
        "FrameUpscaled",
        "KeyframeCompleted",
        "KeyframePreview",
        "Loading",
        "Progress",
        "RoundCompleted",
        "VideoCompleted",
    ),
    "cogvideo.media.metadata": ("read_metadata",),
    "cogvideo.media.video": ("write_video",),
    "cogvideo.pipeline": ("CogVideoPipeline",),
    "cogvideo.request": ("VideoRequest",),
    "cogvideo.token_frames": ("TokenFrames",),
    "cogvideo.token_layout": ("TokenLayout",),
    "cogvideo.tokenizers.image": ("ImageTokenizer",),
}
_OWNERS = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name on first use. Raises AttributeError for any other name."""
    if name not in _OWNERS:
        raise AttributeError(f"module 'cogvideo' has no attribute {name!r}")
    value = getattr(import_module(_OWNERS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
