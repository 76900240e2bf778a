"""Which accelerator, in which precision, and what is on it when. The only place that moves modules between devices.

In: what the machine has. Out: a `Place`; `with resident(...)` keeps a module on it for as long as it computes.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from cogvideo.config import ModelConfig
from cogvideo.errors import CapacityError
from cogvideo.memory import choose

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Place:
    """Where models compute and in which precision."""

    device: torch.device
    dtype: torch.dtype
    keep: bool = True
    """Whether modules stay on the device between uses; otherwise they wait in host memory."""
    eight_bit: bool = False
    """Whether the layers' matrices are kept in 8 bits (bitsandbytes): half of fp16's memory, slower, not exact."""
    frames_per_pass: int = 4
    """Frames that super-resolution enlarges at once."""

    @property
    def home(self) -> torch.device:
        """Where a module is loaded to and waits."""
        return self.device if self.keep else torch.device("cpu")


def pick_place(device: str | None = None, keep: bool = True, eight_bit: bool = False) -> Place:
    """The best place of this machine, or the named one ("cpu", "cuda", "cuda:1"). Raises CapacityError.

    fp32 on a CPU, where half precision is slower, and fp16, as published, on a GPU.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise CapacityError(
            f"找不到设备 {name}：这台机器上没有可用的 NVIDIA 显卡，请改用 cpu。",
            f"There is no device {name}: no usable NVIDIA card was found on this machine; use cpu.",
        )
    chosen = torch.device(name)
    return Place(chosen, torch.float16 if chosen.type == "cuda" else torch.float32, keep, eight_bit)


def fit_place(model: ModelConfig, device: str | None = None, memory: str | None = None) -> Place:
    """The best place, and the named memory preset or the best one that fits. Raises RequestError, CapacityError.

    A CPU is given the model even where memory may not do: other programs may make room, and files are mapped.
    """
    place = pick_place(device)
    if place.device.type == "cuda":
        row = choose(model, "cuda", torch.cuda.mem_get_info(place.device)[0], memory)
    else:
        row = choose(model, "cpu", 2**63 - 1, memory)
    return replace(place, keep=not row.offload, eight_bit=row.eight_bit, frames_per_pass=row.frames_per_pass)


def has_room(model: ModelConfig, device: str | None = None) -> bool:
    """Whether this machine has a GPU with room for the model under some memory preset."""
    if not torch.cuda.is_available():
        return False
    try:
        fit_place(model, device)
    except CapacityError:
        return False
    return True


def compress(network: nn.Module, place: Place) -> None:
    """Put the matrices of all layers of `network` into 8 bits, in place; embeddings, norms and gates stay as they are.

    One scale for each output row (Dettmers et al. 2022, without outlier columns). A layer that is in 8 bits already,
    since networks share a backbone, is left alone.
    """
    from bitsandbytes.nn import Int8Params, Linear8bitLt

    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            weight = getattr(layer, "weight", None)
            if weight is None or weight.ndim != 2 or isinstance(layer, (nn.Embedding, Linear8bitLt)):
                continue
            bias = getattr(layer, "bias", None)
            if bias is None:  # sat's embedding, which is no product
                continue
            outputs, inputs = weight.shape
            small = Linear8bitLt(inputs, outputs, has_fp16_weights=False, threshold=0.0, device="meta")
            small.weight = Int8Params(weight.detach().cpu(), requires_grad=False, has_fp16_weights=False)
            small.bias = nn.Parameter(bias.detach(), requires_grad=False)
            setattr(parent, name, small.to(place.home).requires_grad_(False))


def current(place: Place) -> AbstractContextManager[object]:
    """Inside the block the place's card is the one that kernels start on: on another they would not find their data."""
    return torch.cuda.device(place.device) if place.device.type == "cuda" else nullcontext()


@contextmanager
def resident(module: Module, place: Place) -> Iterator[Module]:
    """Has `module` on the place's device inside the block; afterwards it is home again, whatever happened."""
    try:
        with current(place):
            yield module.to(place.device)
    finally:
        module.to(place.home)
        if not place.keep and place.device.type == "cuda":
            torch.cuda.empty_cache()


def release(place: Place) -> None:
    """Give back what modules held that nobody uses any more."""
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def enough_memory() -> Iterator[None]:
    """Inside the block, running out of memory is a CapacityError with a remedy."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        on_device = isinstance(error, torch.OutOfMemoryError)
        if not (on_device or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)):
            raise
        zh, en = ("显存", "graphics memory") if on_device else ("内存", "memory")
        raise CapacityError(
            f"{zh}不足：请关闭其他程序，减少帧数，或关闭超分后再试。",
            f"Out of {en}: close other programs, ask for fewer frames, or switch super-resolution off, and try again.",
        ) from error


@contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """Inside the block torch computes with `count` threads (None: one per core that this process may use).

    Drawing token by token is faster with one: its operations are so small that threads only wait for each other.
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
