"""Which models a server offers: how each is made, and what a missing one takes. Reads no weights, imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cogvideo.config import PRESETS, Preset, VideoRequest
from cogvideo.errors import RequestError
from cogvideo.events import Event, Frames
from cogvideo.jobs.state import Sentence
from cogvideo.token_frames import TokenFrames
from cogvideo.weights.catalog import LICENCE, Places

if TYPE_CHECKING:
    from cogvideo.tokenizers.text import CheckedPrompt, Reading


class Pipeline(Protocol):
    """What jobs need of a pipeline (`cogvideo.pipeline.CogVideoPipeline`)."""

    def check(self, request: VideoRequest) -> CheckedPrompt:
        """What the model reads, and notes about it. Raises RequestError."""
        ...

    def read(self, request: VideoRequest) -> Reading:
        """The prompt as the model reads it. Raises RequestError."""
        ...

    def load(self) -> None:
        """Reads the weights now instead of at the first token. Raises WeightsError, CapacityError."""
        ...

    def unload(self) -> None:
        """Lets go of the weights; they are read again when they are needed."""
        ...

    def stream(self, request: VideoRequest, stop: Callable[[], bool] | None = None) -> Generator[Event, None, None]:
        """Yields events; asks `stop` once per token and raises Cancelled once it says True."""
        ...

    def encode(self, picture: Frames) -> TokenFrames:
        """A picture uint8 [H, W, 3] of the preset's `frame_size` -> the tokens of a first frame."""
        ...

    def decode(self, tokens: TokenFrames) -> Frames:
        """Tokens -> the pictures that the model sees in them, uint8 [F, H, W, 3]. Raises RequestError."""
        ...

    @property
    def kind(self) -> str:
        """Of device that it computes on: "cuda" or "cpu"."""
        ...

    @property
    def memory(self) -> str:
        """Name of the memory preset that it computes under."""
        ...

    @property
    def how(self) -> str:
        """Both of these in a word, "KIND-MEMORY": speeds are kept for each."""
        ...


Make = Callable[[str | None], Pipeline]
"""The name of a memory preset, or None for what fits -> a pipeline that has read nothing yet."""


@dataclass(frozen=True)
class Offer:
    """One model that a server has, or could have."""

    preset: Preset
    make: Make
    missing: Callable[[], Sentence | None]
    """What it takes to have it, None where nothing is missing."""

    @property
    def name(self) -> str:
        return self.preset.name


def offers(
    first: str, device: str | None = None, eight_bit: bool = False, offload: bool = False, memory: str | None = None
) -> list[Offer]:
    """The presets, `first` in front; the rest as in `CogVideoPipeline.from_pretrained`. Raises RequestError."""
    if first not in PRESETS:
        names = ", ".join(PRESETS)
        raise RequestError(
            f"没有名为 {first} 的模型：可用的有 {names}。", f"There is no model called {first}: there are {names}."
        )

    def offer(name: str) -> Offer:
        def make(smaller: str | None) -> Pipeline:
            from cogvideo.pipeline import CogVideoPipeline

            wanted = smaller or memory
            by_hand = smaller is None
            return CogVideoPipeline.from_pretrained(
                name, device, eight_bit=eight_bit and by_hand, offload=offload and by_hand, memory=wanted
            )

        return Offer(PRESETS[name], make, missing_files if name == "cogvideo" else lambda: None)

    return [offer(name) for name in sorted(PRESETS, key=lambda name: name != first)]


def missing_files() -> Sentence | None:
    """What the published model takes, None where its files are complete."""
    places = Places.usual()
    if places.complete():
        return None
    size = sum(file.size for file in places.missing())
    zh, en = LICENCE
    return (
        f"这台机器上还没有它：约 {size / 1e9:.0f} GB，请运行 python -m cogvideo download cogvideo。{zh}",
        f"It is not on this machine yet: about {size / 1e9:.0f} GB, fetched by python -m cogvideo download cogvideo. "
        f"{en}",
    )
