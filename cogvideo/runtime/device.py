"""Choice of the device and its precision, and the number of threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from cogvideo.config import ModelConfig
from cogvideo.errors import CapacityError, RequestError
from cogvideo.runtime.memory_estimate import choose_preset
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, MemoryPreset

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class DevicePlacement:
    """Where models compute, in which precision, and how they are held there."""

    device: torch.device
    dtype: torch.dtype
    memory: MemoryPreset = MEMORY_PRESETS["cpu"]

    @property
    def read_as(self) -> torch.dtype | None:
        """The type in which weights are best read; None: as in their file, mapped, since few of them stay exact."""
        return self.dtype if self.memory.weights == "exact" else None

    @property
    def kind(self) -> str:
        """As `MemoryPreset.device`: "cuda", or "cpu"."""
        return self.device.type

    @property
    def home(self) -> torch.device:
        """Where a network's own part waits."""
        return torch.device("cpu") if self.memory.swap_networks else self.device


def default_placement(device: str | None = None, eight_bit: bool = False, offload: bool = False) -> DevicePlacement:
    """The best place of this machine, or the named one ("cpu", "cuda", "cuda:1"), whatever fits.

    fp32 on a CPU, where half precision is slower, and fp16, as published, on a GPU. `eight_bit`: LLM.int8 of
    bitsandbytes. `offload`: matrices come from host memory for each product. Raises RequestError, CapacityError.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CapacityError(
            f"找不到设备 {name}：这台机器上没有可用的 NVIDIA 显卡，请改用 cpu。",
            f"There is no device {name}: no usable NVIDIA card was found on this machine; use cpu.",
        )
    chosen = torch.device(name)
    gpu = chosen.type == "cuda"
    memory = MEMORY_PRESETS["48g" if gpu else "cpu"]
    if eight_bit and offload:
        raise RequestError(
            "--eight-bit 与 --offload 不能同时使用：请改用 --memory 16g 或 8g。",
            "--eight-bit and --offload do not go together: take --memory 16g or 8g instead.",
        )
    if offload:
        memory = replace(memory, name="offload", offload=True)
    if eight_bit:
        memory = replace(memory, name="eight-bit", weights="bnb8")
    return DevicePlacement(chosen, torch.float16 if gpu else torch.float32, memory)


def placement_for(model: ModelConfig, device: str | None = None, memory: str | None = None) -> DevicePlacement:
    """The best place, and the named memory preset or the best one that fits. Raises RequestError, CapacityError.

    A CPU is given the model even where memory may not do: other programs may make room, and files are mapped.
    """
    place = default_placement(device)
    free = torch.cuda.mem_get_info(place.device)[0] if place.kind == "cuda" else 2**63 - 1
    return replace(place, memory=choose_preset(model, place.kind, free, memory))


def has_room(model: ModelConfig, device: str | None = None) -> bool:
    """Whether this machine has a GPU with room for the model under some memory preset."""
    if not torch.cuda.is_available():
        return False
    try:
        placement_for(model, device)
    except CapacityError:
        return False
    return True


@contextmanager
def torch_threads(count: int | None = None) -> Iterator[None]:
    """Inside the block torch computes with `count` threads (None: one per core that this process may use).

    Drawing token by token is faster with one: PyTorch's operations are so small that its threads only wait for each
    other. Where the step is compiled it divides its rows by itself, see `kernels.thread_pool`.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_cores() -> int:
    """Cores that this process may use; OMP_NUM_THREADS, where it is set, is respected."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
