"""The models of a server as clients use them: presets, estimates, tokenization, image encoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from cogvideo.config import Preset
from cogvideo.events import Frames
from cogvideo.jobs.eta import ThroughputStore
from cogvideo.jobs.model_registry import ModelEntry, ModelRegistry, Pipeline
from cogvideo.request import VideoRequest
from cogvideo.token_frames import TokenFrames

if TYPE_CHECKING:
    from cogvideo.tokenizers.prompt import CheckedPrompt, TokenizedPrompt

Result = TypeVar("Result")


class RunOnWorker(Protocol):
    """Execution of a short call on the worker thread."""

    def __call__(self, call: Callable[[], Result]) -> Result:
        """Return what `call` returns and raise what it raises."""
        ...


class ModelService:
    """All models of one server. In every method, `model` None stands for the default model."""

    def __init__(self, registry: ModelRegistry, throughput: ThroughputStore, run_on_worker: RunOnWorker) -> None:
        self._registry, self._throughput, self._run_on_worker = registry, throughput, run_on_worker

    @property
    def entries(self) -> dict[str, ModelEntry]:
        """The available models by name, the default one first."""
        return self._registry.entries

    def entry(self, model: str | None = None) -> ModelEntry:
        """Return one model. Raises RequestError if this server has none of that name."""
        return self._registry.entry(model or self._registry.default)

    def preset(self, model: str) -> Preset:
        """Return a model's preset, or that of the default model if this server no longer has it."""
        return self._registry.preset(model)

    def memory_summary(self, model: str) -> tuple[str, str] | None:
        """Return device type and fitting memory preset of a model. Returns None if it cannot be created."""
        return self._registry.memory_summary(model)

    def estimate(self, request: VideoRequest, model: str | None = None, memory: str | None = None) -> float | None:
        """Return the seconds that `request` would take to run. Returns None if a stage was never measured."""
        return self._throughput.estimate(self.entry(model).preset, request, memory)

    def check_inputs(self, request: VideoRequest, model: str, memory: str | None) -> CheckedPrompt:
        """Check a request against its model. Raises CogVideoError."""
        return self._registry.pipeline(model, memory).check_inputs(request)

    def tokenize_prompt(self, request: VideoRequest, model: str | None = None) -> TokenizedPrompt:
        """Return the tokenized prompt, piece by piece. Raises RequestError."""
        return self._registry.pipeline(model or self._registry.default).tokenize_prompt(request)

    def encode(self, image: Frames, model: str | None = None) -> TokenFrames:
        """Encode an image, uint8 [H, W, 3] of the model's frame size. Raises CogVideoError."""
        return self._call(model, lambda pipeline: pipeline.encode(image))

    def decode(self, tokens: TokenFrames, model: str | None = None) -> Frames:
        """Decode tokens to frames, uint8 [F, H, W, 3]. Raises CogVideoError."""
        return self._call(model, lambda pipeline: pipeline.decode(tokens))

    def _call(self, model: str | None, work: Callable[[Pipeline], Result]) -> Result:
        name = model or self._registry.default
        pipeline = self._registry.pipeline(name)

        def call() -> Result:
            self._registry.mark_loaded(name)
            return work(pipeline)

        return self._run_on_worker(call)
