"""Choice of the device, its precision, and the number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from cogvideo.config import ModelConfig
from cogvideo.errors import CapacityError
from cogvideo.messages import message
from cogvideo.runtime.memory_estimate import choose_preset
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, MemoryPreset, PlacementOptions

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class DevicePlacement:
    """Device, precision and memory preset of the models."""

    device: torch.device
    dtype: torch.dtype
    memory: MemoryPreset = MEMORY_PRESETS["cpu"]

    @property
    def read_as(self) -> torch.dtype | None:
        """Type in which to read weights. None: that of the file, mapped, if most weights are quantized afterwards."""
        return self.dtype if self.memory.weights == "exact" else None

    @property
    def kind(self) -> str:
        """Device type as in `MemoryPreset.device`: "cuda" or "cpu"."""
        return self.device.type

    @property
    def home(self) -> torch.device:
        """Device of a network's own weights while the network is idle."""
        return torch.device("cpu") if self.memory.swap_networks else self.device


def default_placement(device: str | None = None) -> DevicePlacement:
    """Return the placement on the best device, or on "cpu", "cuda" or "cuda:1", whether or not a model fits there.

    fp32 on a CPU, where half precision is slower, and fp16, as published, on a GPU. Raises CapacityError.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CapacityError(*message("device.no_gpu", name=name))
    chosen = torch.device(name)
    gpu = chosen.type == "cuda"
    return DevicePlacement(chosen, torch.float16 if gpu else torch.float32, MEMORY_PRESETS["48g" if gpu else "cpu"])


def placement_for(model: ModelConfig, options: PlacementOptions = PlacementOptions()) -> DevicePlacement:
    """Return the placement for a model: as in `options`, else the best device and the fastest preset that fits.

    A CPU is used even if memory may not suffice: files are mapped, and other programs may free memory. Raises
    RequestError, CapacityError.
    """
    place = default_placement(options.device)
    if options.offload is not None:
        return replace(place, memory=replace(place.memory, name="offload", offload=True))
    if options.quantization is not None:
        return replace(place, memory=replace(place.memory, name="eight-bit", weights="bnb8"))
    free = torch.cuda.mem_get_info(place.device)[0] if place.kind == "cuda" else 2**63 - 1
    return replace(place, memory=choose_preset(model, place.kind, free, options.memory_preset))


def has_room(model: ModelConfig, device: str | None = None) -> bool:
    """Return whether this machine has a GPU that can hold the model under some memory preset."""
    if not torch.cuda.is_available():
        return False
    try:
        placement_for(model, PlacementOptions(device))
    except CapacityError:
        return False
    return True


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Set the number of torch threads to `count` in the block (None: one for each core of this process).

    Token-by-token decoding is faster with one thread: its PyTorch operations are too small for several. The compiled
    step divides its rows itself, see `kernels.thread_pool`.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """Return the number of cores that this process may use, or OMP_NUM_THREADS if it is set."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    if setting.isdigit() and int(setting) > 0:
        return int(setting)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
