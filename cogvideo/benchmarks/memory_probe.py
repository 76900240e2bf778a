"""A few steps of each phase of a video under a memory preset: how much memory they take, how long all of them would.

In: networks in host memory, a place. Out: for each phase its peak, weights and all, and its seconds.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cogvideo.config import FRAME_COUNTS, SamplingOptions
from cogvideo.inference import decoding, super_resolution
from cogvideo.inference.sampling import ClusterSampler
from cogvideo.models.quantization import Compression
from cogvideo.runtime.device import DevicePlacement, torch_threads
from cogvideo.runtime.placement import PlacedModels, on_device, place_models, upscaler_on_device

CLUSTERS = 500


@dataclass(frozen=True)
class PhaseMemory:
    """What a phase takes on the device, for a prompt as long as the model reads."""

    bytes: int
    seconds: float
    """Of a whole video of 33 frames, from those of the steps that were made."""


@dataclass(frozen=True)
class Rehearsed:
    """Every phase by its name, and which layers were compressed for it."""

    phases: dict[str, PhaseMemory]
    compression: Compression = field(default_factory=Compression)


def probe_memory(
    models: Any,
    place: DevicePlacement,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
    streamed_frames: int = FRAME_COUNTS[-1],
) -> Rehearsed:
    """`steps` tokens of keyframes and of the frames between, and one pass of super-resolution.

    `streamed_frames`: frames of that pass where layers are streamed, whose cost then is shared by all of them.
    """
    rehearsal = _MemoryProbe(place_models(models, place), place, steps, clock, streamed_frames)
    phases = {
        "keyframes": rehearsal.measure("stage1", rehearsal.keyframes, 1),
        "interpolate": rehearsal.measure("stage2", rehearsal.interpolate, 1),
        "superres": rehearsal.measure("superres", rehearsal.superres, None),
    }
    return Rehearsed(phases, rehearsal.models.compression)


class _MemoryProbe:
    """Runs the phases. Their methods return which part of the phase they were."""

    def __init__(
        self, models: PlacedModels, place: DevicePlacement, steps: int, clock: Callable[[], float], streamed_frames: int
    ) -> None:
        self.models, self.place, self.steps, self.clock = models, place, steps, clock
        self.streamed_frames = streamed_frames
        config = models.stage1.config
        self.layout = models.stage1.layout
        spare = config.vocab_size - config.image_tokens
        self.text = [config.image_tokens + i % spare for i in range(config.text_length)]
        labels = torch.arange(config.image_tokens) % min(CLUSTERS, config.image_tokens)
        self.sampler = ClusterSampler(labels).to(place.device)

    def measure(self, name: str, run: Callable[[], float], cores: int | None) -> PhaseMemory:
        network: nn.Module = getattr(self.models, name)
        streams = self.place.memory.stream_layers and name == "superres"
        ready = nullcontext() if streams else on_device(network, self.place)
        with torch_threads(cores), ready, peak(self.place.device) as found:
            held = self._held(None if streams else network)
            start = self.clock()
            share = run()
            if self.place.kind == "cuda":
                torch.cuda.synchronize(self.place.device)
            seconds = (self.clock() - start) / share
        return PhaseMemory(held + found.bytes, seconds)

    def keyframes(self) -> float:
        first = self._tokens(1, 1)[:, 0]
        drawn = decoding.keyframes(self.models.stage1, [self.text], first, self._draw, unconditional=[self.text])
        total = FRAME_COUNTS[0] * self.layout.tokens_per_frame  # the first frame takes no longer than the others
        return self._some(drawn) / total

    def interpolate(self) -> float:
        rows = self.place.memory.max_batch_rows
        drawn = decoding.interpolate(self.models.stage2, [self.text] * rows, self._tokens(rows, 3), self._draw)
        passes = sum(-(-(2**level) // rows) for level in range(1, len(FRAME_COUNTS)))
        return self._some(drawn) / (passes * len(self.layout.generated) * self.layout.tokens_per_frame)

    def superres(self) -> float:
        memory = self.place.memory
        frames = self.streamed_frames if memory.stream_layers else memory.frames_per_pass
        options = SamplingOptions().superres
        clip = self._tokens(1, frames)[0]
        with upscaler_on_device(self.models.superres, self.place) as layers:
            run = super_resolution.UpscaleOptions(memory.frames_per_pass, layers)
            for _ in super_resolution.upscale(self.models.superres, clip, self.text, self.sampler, options, 0, run):
                pass
        return min(1.0, frames / FRAME_COUNTS[-1])

    def _some(self, tokens: Iterator[object]) -> int:
        return sum(1 for _ in islice(tokens, self.steps))

    def _draw(self, logits: Tensor, frame: int, slot: int) -> Tensor:
        keys = torch.zeros(len(logits), 2, dtype=torch.long, device=logits.device)
        return self.sampler.sample(logits, keys, SamplingOptions().video)

    def _tokens(self, rows: int, frames: int) -> Tensor:
        shape = rows, frames, self.layout.tokens_per_frame
        return torch.zeros(shape, dtype=torch.long, device=self.place.device)

    def _held(self, network: nn.Module | None) -> int:
        """Bytes of weights that are on the device before `network` begins (None: one that brings its own)."""
        if self.place.kind == "cuda":
            return torch.cuda.memory_allocated(self.place.device)
        models = self.models
        if not self.place.memory.swap_networks:
            return held_bytes((models.stage1, models.stage2, models.superres))
        return held_bytes([models.stage1.transformer] + ([network] if network is not None else []))


class PeakBytes(TorchDispatchMode):
    """While it is entered: `now` and `most` bytes of tensors made since, on any device but "meta"."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}  # storages, by identity; None once they are gone

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, made=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, made=True)
        return result

    def _meet(self, tensor: Tensor, made: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)  # the same as long as any tensor has it
        if key in self._known:
            return
        size = storage.nbytes() if made else 0

        def gone(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


class Peak:
    """What `peak` found, once its block has ended."""

    bytes: int = 0


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """The most memory that the block takes besides what was there before."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    with PeakBytes() as counted:
        yield found
    found.bytes = counted.most


def held_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of all weights of `modules`, those that several share once; what is on no device ("meta") not at all."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
        if not tensor.is_meta
    }
    return sum(tensors.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_meta)
