"""The models of one server: each pipeline is created once, on first use; only one has its weights loaded.

Thread-safe, except `activate`, `mark_loaded` and `unload_others`, which only the worker calls.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

from cogvideo.config import PRESETS, Preset
from cogvideo.errors import CogVideoError, RequestError
from cogvideo.events import Event, Frames
from cogvideo.messages import BilingualText, message
from cogvideo.request import VideoRequest
from cogvideo.runtime.memory_presets import PlacementOptions
from cogvideo.token_frames import TokenFrames
from cogvideo.units import format_gigabytes
from cogvideo.weights.catalog import LICENCE, WeightPaths

if TYPE_CHECKING:
    from cogvideo.tokenizers.prompt import CheckedPrompt, TokenizedPrompt

LOG = logging.getLogger(__name__)

ModelKey = tuple[str, str | None]
"""Name of a model and the requested memory preset; None: the one that fits."""


class ModelRegistry:
    """All pipelines of a server. `entries`: the available models, the default one first."""

    def __init__(self, entries: Sequence[ModelEntry]) -> None:
        self.entries: dict[str, ModelEntry] = {entry.name: entry for entry in entries}
        self.default = entries[0].name
        self._pipelines: dict[ModelKey, Pipeline] = {}
        self._loaded: set[ModelKey] = set()  # pipelines that may have loaded weights
        self._creating = threading.Lock()

    def entry(self, model: str) -> ModelEntry:
        """Return the model of that name. Raises RequestError if this server has none."""
        if model not in self.entries:
            raise RequestError(
                *message(
                    "model_registry.not_on_server",
                    model=model,
                    available_zh="、".join(self.entries),
                    available_en=", ".join(self.entries),
                )
            )
        return self.entries[model]

    def preset(self, model: str) -> Preset:
        """Return the preset of a model, or of the default model if this server no longer has it."""
        return self.entries.get(model, self.entries[self.default]).preset

    def pipeline(self, model: str, memory: str | None = None) -> Pipeline:
        """Return the pipeline of a model, possibly without weights.

        Raises CogVideoError if it cannot be created, for example because files are missing.
        """
        with self._creating:
            if (model, memory) not in self._pipelines:
                entry = self.entry(model)
                if reason := entry.unavailable_reason():
                    raise RequestError(*reason)
                self._pipelines[model, memory] = entry.make(memory)
            return self._pipelines[model, memory]

    def memory_summary(self, model: str) -> tuple[str, str] | None:
        """Return device type and fitting memory preset of a model. Returns None if it cannot be created."""
        try:
            pipeline = self.pipeline(model)
        except CogVideoError as error:
            LOG.info("No pipeline of %s: %s", model, error)
            return None
        return pipeline.device_type, pipeline.memory

    def activate(self, model: str, memory: str | None) -> Pipeline:
        """Return the pipeline that may load its weights, after unloading all others."""
        pipeline = self.pipeline(model, memory)
        self.unload_others((model, memory))
        self._loaded.add((model, memory))
        return pipeline

    def mark_loaded(self, model: str) -> None:
        """Note that the model, without a requested memory preset, may have loaded weights."""
        self._loaded.add((model, None))

    def unload_others(self, active: ModelKey | None) -> None:
        """Unload all models except the `active` one."""
        for key in self._loaded - {active}:
            self._pipelines[key].unload()
            self._loaded.discard(key)


class Pipeline(Protocol):
    """The interface of `cogvideo.pipeline.CogVideoPipeline` that jobs use."""

    def check_inputs(self, request: VideoRequest) -> CheckedPrompt:
        """Return the normalised prompt and notes about it. Raises RequestError."""
        ...

    def tokenize_prompt(self, request: VideoRequest) -> TokenizedPrompt:
        """Return the tokenized prompt. Raises RequestError."""
        ...

    def load(self) -> None:
        """Load the weights now instead of at the first token. Raises WeightsError, CapacityError."""
        ...

    def unload(self) -> None:
        """Release the weights; they are loaded again on next use."""
        ...

    def stream(self, request: VideoRequest, stop: Callable[[], bool] | None = None) -> Generator[Event, None, None]:
        """Yield events. Calls `stop` once per token and raises Cancelled once it returns True."""
        ...

    def encode(self, picture: Frames) -> TokenFrames:
        """Encode an image, uint8 [H, W, 3] of the preset's `frame_size`, to the tokens of a first frame."""
        ...

    def decode(self, tokens: TokenFrames) -> Frames:
        """Decode tokens to frames, uint8 [F, H, W, 3]. Raises RequestError."""
        ...

    @property
    def device_type(self) -> str:
        """Type of the device: "cuda" or "cpu"."""
        ...

    @property
    def memory(self) -> str:
        """Name of the memory preset in use."""
        ...

    @property
    def profile_key(self) -> str:
        """Device type and memory preset, joined by "-": the key under which throughput is stored."""
        ...


PipelineFactory = Callable[[str | None], Pipeline]
"""Memory preset, or None for the one that fits -> a pipeline without weights."""


@dataclass(frozen=True)
class ModelEntry:
    """One model of a server, installed or not."""

    preset: Preset
    make: PipelineFactory
    unavailable_reason: Callable[[], BilingualText | None]
    """Returns how to install the model, or None if it is installed."""

    @property
    def name(self) -> str:
        return self.preset.name


def available_models(default: str, placement: PlacementOptions | None = None) -> list[ModelEntry]:
    """Return all presets, `default` first. Raises RequestError if it is not a preset."""
    if default not in PRESETS:
        raise RequestError(
            *message(
                "model_registry.unknown_model",
                default=default,
                presets_zh="、".join(PRESETS),
                presets_en=", ".join(PRESETS),
            )
        )
    names = sorted(PRESETS, key=lambda name: name != default)
    return [_entry(name, placement or PlacementOptions()) for name in names]


def _entry(name: str, placement: PlacementOptions) -> ModelEntry:
    def make(requested: str | None) -> Pipeline:
        from cogvideo.pipeline import CogVideoPipeline

        options = placement if requested is None else PlacementOptions(placement.device, requested)
        return CogVideoPipeline.from_pretrained(name, **asdict(options))

    return ModelEntry(PRESETS[name], make, missing_files_message if name == "cogvideo" else lambda: None)


def missing_files_message() -> BilingualText | None:
    """Return how to download the published model. Returns None if its files are complete."""
    paths = WeightPaths.usual()
    if paths.complete():
        return None
    size = format_gigabytes(sum(file.size for file in paths.missing()), 0)
    zh, en = LICENCE
    return message("model_registry.not_downloaded", size=size, zh_value=zh, en_value=en)
