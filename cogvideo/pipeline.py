"""The public entry point: a request in, events while the video is generated, and the video.

prompt -> text ids -> keyframes [1, 5, N] -> in-betweens [1, F, N] -> super-resolution [F, 9N] -> uint8 [F, H, W, 3]
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from cogvideo.config import ASSETS, PRESETS, ModelConfig, Preset, load_preset
from cogvideo.errors import OutOfMemoryError, WeightsError
from cogvideo.events import (
    Event,
    Frames,
    Loading,
    VideoCompleted,
)
from cogvideo.inference.decoding import IsCancelled
from cogvideo.inference.generation import (
    GeneratedVideo,
    GenerationEvent,
    GenerationOptions,
    Models,
    PipelineComponents,
    VideoGenerator,
    check_initial_tokens,
)
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.messages import message
from cogvideo.models.fused_decode import should_fuse
from cogvideo.request import VideoRequest
from cogvideo.runtime.device import DevicePlacement, placement_for, usable_cores
from cogvideo.runtime.memory_estimate import peak_bytes
from cogvideo.runtime.memory_presets import PlacementOptions
from cogvideo.runtime.oom import free_memory, translate_oom
from cogvideo.runtime.placement import place_models
from cogvideo.token_frames import TokenFrames
from cogvideo.tokenizers.image import ImageTokenizer
from cogvideo.tokenizers.prompt import CheckedPrompt, KnownConcepts, TokenizedPrompt, check_prompt, tokenize_prompt
from cogvideo.tokenizers.text import (
    TextTokenizer,
)
from cogvideo.units import format_gigabytes
from cogvideo.weights.catalog import ICETK_FOLDER, published_home


@dataclass(frozen=True)
class Text:
    """The tokenizer of prompts, and the concepts that the model was trained on."""

    tokenizer: TextTokenizer
    world: KnownConcepts


class CogVideoPipeline:
    """Text to video with one preset. Components load lazily on first use. Thread-safe.

    `folder`: holds the preset's text model, clusters, codec and concepts. None: its assets, then icetk's own folder.
    `load_models`: (preset name, dtype or None for that of the files, device) -> Models. None: the preset's files.
    `previews`: whether keyframes are previewed while they are generated.
    """

    def __init__(
        self,
        preset: Preset,
        place: DevicePlacement,
        folder: Path | None = None,
        load_models: Callable[[str, torch.dtype | None, torch.device], Models] | None = None,
        previews: bool = True,
    ) -> None:
        self.preset, self.place, self.previews = preset, place, previews
        self._folder = folder or ASSETS / preset.name
        self._load_models = load_models or _load_models
        self._lock = threading.RLock()
        self._parts: dict[str, Any] = {}
        self._found: tuple[str, str] | None = None  # message shown after the weights have loaded

    @classmethod
    def from_pretrained(
        cls,
        name: str = "mini",
        device: str | None = None,
        *,
        memory_preset: str | None = None,
        quantization: Literal["int8"] | None = None,
        offload: Literal["layers"] | None = None,
        previews: bool = True,
    ) -> CogVideoPipeline:
        """Return the pipeline of a preset, or of the folder of a trained model.

        `previews`: whether keyframes are previewed while they are generated. The other options: see
        `PlacementOptions`. Raises RequestError, CapacityError.
        """
        preset, folder = load_preset(name)
        place = placement_for(preset.model, PlacementOptions(device, memory_preset, quantization, offload))
        if name in PRESETS:
            return cls(preset, place, previews=previews)
        return cls(preset, place, folder, partial(_load_folder, folder, preset.model), previews)

    def __call__(self, request: VideoRequest) -> Frames:
        """Return the frames of the video, uint8 [F, H, W, 3]. Raises CogVideoError."""
        *_, done = self.stream(request)
        assert isinstance(done, VideoCompleted)
        return done.frames

    def stream(self, request: VideoRequest, is_cancelled: IsCancelled | None = None) -> Generator[Event, None, None]:
        """Generate a video and yield events while it grows, `VideoCompleted` last.

        Raises RequestError immediately, before any work. The iterator raises WeightsError, CapacityError, and Cancelled
        within one token of `is_cancelled` returning True.
        """
        checked = self.check_inputs(request)
        return self._stream(replace(request, prompt=checked.text), is_cancelled or (lambda: False))

    def check_inputs(self, request: VideoRequest) -> CheckedPrompt:
        """Return the prompt as the model will read it, with notes. Reads the vocabulary, not the networks.

        Raises RequestError.
        """
        for given in (request.first_frame, request.initial_tokens):
            if given is not None:
                check_initial_tokens(self.preset.model, given)
        text: Text = self._part("text")
        return check_prompt(request.prompt, text.tokenizer, self.preset, text.world, request.superres)

    def tokenize_prompt(self, request: VideoRequest) -> TokenizedPrompt:
        """Split the prompt into the pieces that the model reads. Raises RequestError."""
        text: Text = self._part("text")
        return tokenize_prompt(request.prompt, text.tokenizer, self.preset, request.superres)

    def encode(self, picture: Frames) -> TokenFrames:
        """Encode an image uint8 [H, W, 3] of the preset's `frame_size` as the tokens of a first frame.

        Raises WeightsError, CapacityError.
        """
        with self.unload_on_oom():
            tokens = self._part("codec").encode(picture[None])  # [1, N]
            return TokenFrames.of(tokens.tolist())

    def decode(self, tokens: TokenFrames) -> Frames:
        """Decode tokens [F, N] to frames uint8 [F, H, W, 3].

        Raises RequestError, WeightsError, CapacityError.
        """
        check_initial_tokens(self.preset.model, tokens)
        with self.unload_on_oom():
            frames: Frames = self._part("codec").decode(torch.tensor(tokens.rows()), self.preset.model.grid)
            return frames

    def load(self) -> None:
        """Read all files now. Raises WeightsError, CapacityError."""
        with self.unload_on_oom():
            for _ in self.loading():
                pass

    def unload(self) -> None:
        """Release everything but the vocabulary. The next use loads it again."""
        with self._lock:
            for name in ("clusters", "codec", "models"):
                self._parts.pop(name, None)
        free_memory(self.place)

    @property
    def device_type(self) -> str:
        """Type of the device: "cuda" or "cpu"."""
        return self.place.kind

    @property
    def memory(self) -> str:
        """Name of the memory preset in use."""
        return self.place.memory.name

    @property
    def profile_key(self) -> str:
        """Device type and memory preset in one word: the key under which measured speeds are stored."""
        return f"{self.device_type}-{self.memory}"

    @property
    def memory_summary(self) -> str:
        """The memory preset and the estimated peak memory of a video, in both languages."""
        memory = self.place.memory
        peak = format_gigabytes(peak_bytes(self.preset.model, memory, self.place.kind))
        return f"显存预设 memory preset: {memory.name} (≤ {peak} GB)"

    # The components, each created once.

    def components(self) -> PipelineComponents:
        """Return what generates videos; load it if necessary. Raises WeightsError, CapacityError."""
        names = "clusters", "codec", "models"
        return PipelineComponents(self._part("text").tokenizer, *(self._part(name) for name in names))

    def loading(self) -> Iterator[Loading]:
        """Load the missing components one by one. Raises WeightsError, CapacityError."""
        missing = [name for name in _MAKERS if name not in self._parts]
        for number, name in enumerate(missing):
            yield Loading(name, number, len(missing))
            self._part(name)
        if missing:
            yield Loading(missing[-1], len(missing), len(missing), self._found)

    def generate_batch(
        self, requests: Sequence[VideoRequest], max_rows: int | None = None, is_cancelled: IsCancelled | None = None
    ) -> Iterator[Loading | GenerationEvent]:
        """Generate checked requests with one pass of each network. `VideoGenerator` states what they must share.

        `max_rows`: sequences that stage 2 reads at once. Raises CapacityError, WeightsError, Cancelled.
        """
        with self.unload_on_oom():
            yield from self.loading()
            yield from self._events(requests, GenerationOptions(max_rows=max_rows, is_cancelled=is_cancelled))

    def _stream(self, request: VideoRequest, is_cancelled: IsCancelled) -> Generator[Event, None, None]:
        with self.unload_on_oom():
            yield from self.loading()
            options = GenerationOptions(show=True, previews=self.previews, is_cancelled=is_cancelled)
            for event in self._events([request], options):
                if isinstance(event, GeneratedVideo):
                    assert event.frames is not None
                    frames = event.frames
                else:
                    yield event
        yield VideoCompleted(frames, request.frames_per_second, request.seed)

    def _events(self, requests: Sequence[VideoRequest], options: GenerationOptions) -> Iterator[GenerationEvent]:
        yield from VideoGenerator(self.components(), self.preset, self.place, requests, options).events()

    @contextmanager
    def unload_on_oom(self) -> Iterator[None]:
        """Unload the pipeline if memory runs out in the block. Raises OutOfMemoryError once all memory is free."""
        try:
            with translate_oom(self.preset.model, self.place):
                yield
        except OutOfMemoryError:
            self.unload()
            raise

    def _part(self, name: str) -> Any:
        with self._lock:
            if name not in self._parts:
                self._parts[name] = _MAKERS[name](self)
            return self._parts[name]

    def _make_text(self) -> Text:
        path = self._first(self._folder / "text.model", ICETK_FOLDER.expanduser() / "ice_text.model")
        tokenizer = TextTokenizer(path, self.preset.model.image_tokens)
        return Text(tokenizer, KnownConcepts.load(self._folder / "world.json"))

    def _make_clusters(self) -> ClusterSampler:
        path = self._first(self._folder / "cluster_labels.npy", published_home() / "cluster_label2.npy")
        labels = _read_labels(path, self.preset.model.image_tokens)
        return ClusterSampler(labels, usable_cores()).to(self.place.device)

    def _make_codec(self) -> ImageTokenizer:
        codec = ImageTokenizer.load(self.preset, self.place.device, self.place.dtype, self._folder)
        height, width = self.preset.model.fine_grid
        codec.tokens_per_pass = min(codec.tokens_per_pass, self.place.memory.frames_per_pass * height * width)
        return codec

    def _make_models(self) -> Models:
        # Read into host memory (mapped if nothing has to be converted): all of it might not fit on the device.
        loaded = self._load_models(self.preset.name, self.place.read_as, torch.device("cpu"))
        models = place_models(loaded, self.place)
        self._found = models.compression.after(getattr(loaded, "message", None))
        memory = self.place.memory
        plain = memory.weights == "exact" and not (memory.offload or memory.swap_networks or memory.int8_cache)
        plain = plain and (memory.fused or self.place.kind == "cpu")
        if plain and should_fuse(self.preset.model, self.place.device):
            models.stage1.fuse(threads=usable_cores())
            models.stage2.fuse(threads=usable_cores())
        return models

    def _first(self, *paths: Path) -> Path:
        """Return the first file that exists. If none does, return the one that the error should name."""
        expected = paths[0] if self._folder.is_dir() else paths[-1]
        return next((path for path in paths if path.is_file()), expected)


_MAKERS: Final[dict[str, Callable[[CogVideoPipeline], Any]]] = {
    "text": CogVideoPipeline._make_text,
    "clusters": CogVideoPipeline._make_clusters,
    "codec": CogVideoPipeline._make_codec,
    "models": CogVideoPipeline._make_models,
}


def _load_models(name: str, dtype: torch.dtype | None, device: torch.device) -> Models:
    from cogvideo.models.loader import load

    return load(name, dtype, device)


def _load_folder(
    folder: Path, model: ModelConfig, name: str, dtype: torch.dtype | None, device: torch.device
) -> Models:
    from cogvideo.models.loader import load_safetensors

    return load_safetensors(folder, model, dtype, device)


def _read_labels(path: Path, tokens: int) -> Tensor:
    """Read the cluster of every image token, int64 [tokens]. Raises WeightsError."""
    try:
        labels = np.load(path, allow_pickle=False)
        if labels.shape != (tokens,):
            raise ValueError(f"shape {labels.shape}, not {(tokens,)}")
        labels = labels.astype(np.int64)
    except Exception as error:  # a damaged header can raise almost any error, even those of `tokenize`
        reason = "文件不存在" if isinstance(error, FileNotFoundError) else str(error)
        raise WeightsError(
            *message("pipeline.cluster_labels_unreadable", path=path, reason=reason, error=error)
        ) from error
    return torch.from_numpy(labels)
