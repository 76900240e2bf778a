"""The models of one server: each pipeline made once, by whoever needs it first; one at a time has its weights.

In: offers. Out: pipelines. Any thread may ask for one; `ready` and `let_go` are for the worker alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cogvideo.config import PRESETS, Preset
from cogvideo.errors import BilingualText, CogVideoError, RequestError
from cogvideo.events import Event, Frames
from cogvideo.request import VideoRequest
from cogvideo.token_frames import TokenFrames
from cogvideo.weights.catalog import LICENCE, WeightPaths

if TYPE_CHECKING:
    from cogvideo.tokenizers.prompt import CheckedPrompt, TokenizedPrompt

LOG = logging.getLogger(__name__)

Which = tuple[str, str | None]
"""A model and the memory preset that somebody asked for, None: what fits."""


class ModelRegistry:
    """`offers`: what may be asked for, the server's own model first."""

    def __init__(self, offers: Sequence[ModelEntry]) -> None:
        self.offers: dict[str, ModelEntry] = {offer.name: offer for offer in offers}
        self.own = offers[0].name
        self._made: dict[Which, Pipeline] = {}
        self._loaded: set[Which] = set()  # which of them may have read weights
        self._making = threading.Lock()

    def offer(self, model: str) -> ModelEntry:
        """The model of that name. Raises RequestError where this server does not know it."""
        if model not in self.offers:
            raise RequestError(
                f"这台服务器没有名为 {model} 的模型：可用的有 {'、'.join(self.offers)}。",
                f"This server has no model called {model}: there are {', '.join(self.offers)}.",
            )
        return self.offers[model]

    def preset(self, model: str) -> Preset:
        """The sizes of the model of that name; of the server's own where it does not know that one any more."""
        return self.offers.get(model, self.offers[self.own]).preset

    def pipeline(self, model: str, memory: str | None = None) -> Pipeline:
        """The pipeline of a model; it may have read nothing yet. Raises CogVideoError where it cannot be made."""
        with self._making:
            if (model, memory) not in self._made:
                offer = self.offer(model)
                if missing := offer.missing():
                    raise RequestError(*missing)
                self._made[model, memory] = offer.make(memory)
            return self._made[model, memory]

    def held(self, model: str) -> tuple[str, str] | None:
        """The kind of device and the memory preset that fit the model; None where it cannot be made here."""
        try:
            pipeline = self.pipeline(model)
        except CogVideoError as error:
            LOG.info("No pipeline of %s: %s", model, error)
            return None
        return pipeline.device_type, pipeline.memory

    def activate(self, model: str, memory: str | None) -> Pipeline:
        """The pipeline that may have its weights now; any other lets go of them."""
        pipeline = self.pipeline(model, memory)
        self.unload_others((model, memory))
        self._loaded.add((model, memory))
        return pipeline

    def used(self, model: str) -> None:
        """The model, as the server holds it by itself, may have read some of its files."""
        self._loaded.add((model, None))

    def unload_others(self, following: Which | None) -> None:
        """Frees the memory of all models but the `following` one."""
        for which in self._loaded - {following}:
            self._made[which].unload()
            self._loaded.discard(which)


class Pipeline(Protocol):
    """What jobs need of a pipeline (`cogvideo.pipeline.CogVideoPipeline`)."""

    def check_inputs(self, request: VideoRequest) -> CheckedPrompt:
        """What the model reads, and notes about it. Raises RequestError."""
        ...

    def tokenize_prompt(self, request: VideoRequest) -> TokenizedPrompt:
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
    def device_type(self) -> str:
        """Of device that it computes on: "cuda" or "cpu"."""
        ...

    @property
    def memory(self) -> str:
        """Name of the memory preset that it computes under."""
        ...

    @property
    def profile_key(self) -> str:
        """Both of these in a word, "KIND-MEMORY": speeds are kept for each."""
        ...


Make = Callable[[str | None], Pipeline]
"""The name of a memory preset, or None for what fits -> a pipeline that has read nothing yet."""


@dataclass(frozen=True)
class ModelEntry:
    """One model that a server has, or could have."""

    preset: Preset
    make: Make
    missing: Callable[[], BilingualText | None]
    """What it takes to have it, None where nothing is missing."""

    @property
    def name(self) -> str:
        return self.preset.name


def available_models(
    first: str, device: str | None = None, eight_bit: bool = False, offload: bool = False, memory: str | None = None
) -> list[ModelEntry]:
    """The presets, `first` in front; the rest as in `CogVideoPipeline.from_pretrained`. Raises RequestError."""
    if first not in PRESETS:
        names = ", ".join(PRESETS)
        raise RequestError(
            f"没有名为 {first} 的模型：可用的有 {names}。", f"There is no model called {first}: there are {names}."
        )

    def offer(name: str) -> ModelEntry:
        def make(smaller: str | None) -> Pipeline:
            from cogvideo.pipeline import CogVideoPipeline

            wanted = smaller or memory
            by_hand = smaller is None
            return CogVideoPipeline.from_pretrained(
                name, device, eight_bit=eight_bit and by_hand, offload=offload and by_hand, memory=wanted
            )

        return ModelEntry(PRESETS[name], make, missing_files if name == "cogvideo" else lambda: None)

    return [offer(name) for name in sorted(PRESETS, key=lambda name: name != first)]


def missing_files() -> BilingualText | None:
    """What the published model takes, None where its files are complete."""
    places = WeightPaths.usual()
    if places.complete():
        return None
    size = sum(file.size for file in places.missing())
    zh, en = LICENCE
    return (
        f"这台机器上还没有它：约 {size / 1e9:.0f} GB，请运行 python -m cogvideo download cogvideo。{zh}",
        f"It is not on this machine yet: about {size / 1e9:.0f} GB, fetched by python -m cogvideo download cogvideo. "
        f"{en}",
    )
