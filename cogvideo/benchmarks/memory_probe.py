"""Peak memory and time of each phase of a video under a memory preset, measured in a few steps of each."""

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
    """Peak bytes of a phase on the device, weights included, for a prompt of the maximum length."""

    bytes: int
    seconds: float
    """Seconds for a video of 33 frames, extrapolated from the measured steps."""


@dataclass(frozen=True)
class MemoryProbeResult:
    """The measured phases by name, and the layers that were compressed for them."""

    phases: dict[str, PhaseMemory]
    compression: Compression = field(default_factory=Compression)


def probe_memory(
    models: Any,
    place: DevicePlacement,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
    streamed_frames: int = FRAME_COUNTS[-1],
) -> MemoryProbeResult:
    """Measure `steps` tokens of keyframes and of interpolation, and one pass of super-resolution.

    `models`: in CPU memory. `streamed_frames`: frames of that pass if layers are streamed; all share the transfers.
    """
    probe = _MemoryProbe(place_models(models, place), place, steps, clock, streamed_frames)
    phases = {
        "keyframes": probe.measure("stage1", probe.keyframes, 1),
        "interpolate": probe.measure("stage2", probe.interpolate, 1),
        "superres": probe.measure("superres", probe.superres, None),
    }
    return MemoryProbeResult(phases, probe.models.compression)


class _MemoryProbe:
    """Runner of the phases. Their methods return the fraction of the phase that they ran."""

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
            fraction = run()
            if self.place.kind == "cuda":
                torch.cuda.synchronize(self.place.device)
            seconds = (self.clock() - start) / fraction
        return PhaseMemory(held + found.bytes, seconds)

    def keyframes(self) -> float:
        first = self._tokens(1, 1)[:, 0]
        tokens = decoding.keyframes(self.models.stage1, [self.text], first, self._sample, unconditional=[self.text])
        total = FRAME_COUNTS[0] * self.layout.tokens_per_frame  # the first frame takes as long as the others
        return self._run_steps(tokens) / total

    def interpolate(self) -> float:
        rows = self.place.memory.max_batch_rows
        tokens = decoding.interpolate(self.models.stage2, [self.text] * rows, self._tokens(rows, 3), self._sample)
        passes = sum(-(-(2**level) // rows) for level in range(1, len(FRAME_COUNTS)))
        return self._run_steps(tokens) / (passes * len(self.layout.generated) * self.layout.tokens_per_frame)

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

    def _run_steps(self, tokens: Iterator[object]) -> int:
        return sum(1 for _ in islice(tokens, self.steps))

    def _sample(self, logits: Tensor, frame: int, slot: int) -> Tensor:
        keys = torch.zeros(len(logits), 2, dtype=torch.long, device=logits.device)
        return self.sampler.sample(logits, keys, SamplingOptions().video)

    def _tokens(self, rows: int, frames: int) -> Tensor:
        shape = rows, frames, self.layout.tokens_per_frame
        return torch.zeros(shape, dtype=torch.long, device=self.place.device)

    def _held(self, network: nn.Module | None) -> int:
        """Return bytes of weights on the device before `network` starts (None: a network that streams its layers)."""
        if self.place.kind == "cuda":
            return torch.cuda.memory_allocated(self.place.device)
        models = self.models
        if not self.place.memory.swap_networks:
            return held_bytes((models.stage1, models.stage2, models.superres))
        return held_bytes([models.stage1.transformer] + ([network] if network is not None else []))


class PeakBytes(TorchDispatchMode):
    """Counter of the bytes of tensors created inside the block: `now` and `peak`; "meta" tensors do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}  # weak references to storages, by identity

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._track(tensor, created=False)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._track(tensor, created=True)
        return result

    def _track(self, tensor: Tensor, created: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)  # stable while any tensor uses the storage
        if key in self._known:
            return
        size = storage.nbytes() if created else 0

        def forget(_: object) -> None:
            del self._known[key]
            self.now -= size

        self._known[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)


class Peak:
    """Result of `peak`; valid after its block."""

    bytes: int = 0


@contextmanager
def peak(device: torch.device) -> Iterator[Peak]:
    """Measure the peak memory of the block, beyond what was allocated before."""
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
    found.bytes = counted.peak


def held_bytes(modules: Iterable[nn.Module]) -> int:
    """Return the bytes of all weights of `modules`; shared weights count once, "meta" tensors not at all."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
        if not tensor.is_meta
    }
    return sum(tensors.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and not leaf.is_meta)
