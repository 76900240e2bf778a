"""Which accelerator, in which precision, and what is on it when. The only place that moves modules between devices.

In: what the machine has. Out: a `Place`; `settle` puts networks where they wait, `with resident(...)` has one ready to
compute, and `enough_memory` turns running out of memory into a sentence.
"""

from __future__ import annotations

import copy
import gc
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from cogvideo.config import MEMORY, MemoryPreset, ModelConfig
from cogvideo.errors import CapacityError, OutOfMemory, RequestError
from cogvideo.models.base import TokenModel, keep_heads
from cogvideo.models.cache_pool import Kept
from cogvideo.models.quantization import compress, matrices
from cogvideo.models.superres_lm import SuperResLM
from cogvideo.models.video_lm import VideoLM
from cogvideo.runtime.layer_streaming import streamed
from cogvideo.runtime.memory_estimate import choose, peak_bytes, smaller, storage_bytes

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Place:
    """Where models compute, in which precision, and how they are held there."""

    device: torch.device
    dtype: torch.dtype
    memory: MemoryPreset = MEMORY["cpu"]

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
        return torch.device("cpu") if self.memory.swap else self.device


def pick_place(device: str | None = None, eight_bit: bool = False, offload: bool = False) -> Place:
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
    memory = MEMORY["48g" if gpu else "cpu"]
    if eight_bit and offload:
        raise RequestError(
            "--eight-bit 与 --offload 不能同时使用：请改用 --memory 16g 或 8g。",
            "--eight-bit and --offload do not go together: take --memory 16g or 8g instead.",
        )
    if offload:
        memory = replace(memory, name="offload", offload=True)
    if eight_bit:
        memory = replace(memory, name="eight-bit", weights="bnb8")
    return Place(chosen, torch.float16 if gpu else torch.float32, memory)


def fit_place(model: ModelConfig, device: str | None = None, memory: str | None = None) -> Place:
    """The best place, and the named memory preset or the best one that fits. Raises RequestError, CapacityError.

    A CPU is given the model even where memory may not do: other programs may make room, and files are mapped.
    """
    place = pick_place(device)
    free = torch.cuda.mem_get_info(place.device)[0] if place.kind == "cuda" else 2**63 - 1
    return replace(place, memory=choose(model, place.kind, free, memory))


def has_room(model: ModelConfig, device: str | None = None) -> bool:
    """Whether this machine has a GPU with room for the model under some memory preset."""
    if not torch.cuda.is_available():
        return False
    try:
        fit_place(model, device)
    except CapacityError:
        return False
    return True


@dataclass(frozen=True)
class Settled:
    """The three networks as a memory preset holds them."""

    stage1: VideoLM
    stage2: VideoLM
    superres: SuperResLM


def settle(models: Any, place: Place) -> Settled:
    """Networks in host memory (as a rule mapped from their files, in their type) -> the same, held as `place` says.

    Tensor by tensor: host memory gets nothing that was not there before but what is held or waits there.
    """
    memory, device, dtype = place.memory, place.device, place.dtype
    video: tuple[VideoLM, VideoLM] = (models.stage1, models.stage2)
    superres: SuperResLM = _apart(models.superres) if memory.stream else models.superres
    held: tuple[TokenModel, ...] = video if memory.stream else (*video, superres)
    if memory.offload:
        _offload(held, device)
    for network in held:
        compress(network.transformer, memory.weights, device, dtype)
        compress(network.mixins, memory.weights, device, dtype, place.home)
    moves = memory.offload or memory.swap
    kept = Kept(0 if moves else storage_bytes(models.stage1.config, memory, place.kind))
    for lm in video:
        lm.int8_cache, lm.moving, lm.kept = memory.int8_cache, memory.offload, kept
    for network in held:
        _bring(network.transformer, device, dtype)
        _bring(network.mixins, place.home, dtype)
    keep_heads(held)
    return Settled(*video, superres)


def current(place: Place) -> AbstractContextManager[object]:
    """Inside the block the place's card is the one that kernels start on: on another they would not find their data."""
    return torch.cuda.device(place.device) if place.device.type == "cuda" else nullcontext()


@contextmanager
def resident(network: Module, place: Place) -> Iterator[Module]:
    """Has a settled `network` ready to compute inside the block: where parts take turns, its own part comes now.

    Afterwards that part is home again, whatever happened; nothing is copied back, since nothing has changed.
    """
    part: nn.Module | None = getattr(network, "mixins", None)
    if part is None or not place.memory.swap:
        with current(place):
            yield network
        return
    waiting = part.state_dict()
    try:
        part.to(place.device)
        with current(place):
            yield network
    finally:
        part.load_state_dict(waiting, assign=True)
        part.requires_grad_(False)
        _empty_cache(place.device)


@contextmanager
def enlarging(superres: SuperResLM, place: Place) -> Iterator[Callable[[], Iterator[int]] | None]:
    """As `resident` for super-resolution; gives what `stages.superres.draw` takes as `layers`."""
    if not place.memory.stream:
        with resident(superres, place):
            yield None
        return
    with current(place), streamed(superres, superres.layer_modules(), place.device, place.dtype) as layers:
        yield layers
    _empty_cache(place.device)


def _offload(networks: Iterable[nn.Module], device: torch.device) -> None:
    """From now on every matrix waits where it is and comes to `device` for its product alone (accelerate's hooks)."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    layers = {id(layer): layer for network in networks for _, _, layer in matrices(network)}  # each once
    for layer in layers.values():
        add_hook_to_module(layer, AlignDevicesHook(device, offload=True))


def _apart(network: SuperResLM) -> SuperResLM:
    """A network of the same tensors whose modules are its own, so that others may exchange theirs."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def _bring(module: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move what is not there yet, tensor by tensor; what comes by itself (`_offload`) stays away.

    Weights become `dtype`; what belongs to weights in fewer bits stays as it is.
    """
    for weight in module.parameters():
        if not weight.is_meta:
            weight.data = weight.data.to(device, dtype if weight.is_floating_point() else None)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)


@contextmanager
def enough_memory(model: ModelConfig, place: Place) -> Iterator[None]:
    """Inside the block, running out of memory is an `OutOfMemory` that names the next smaller preset.

    What the failed call had in its variables is let go of; what the caller holds is the caller's to free.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _ran_out(error):
            raise
        traceback.clear_frames(error.__traceback__)  # their variables hold the largest tensors
        on_device = place.device.type != "cpu"
    else:
        return
    release(place)
    raise _out_of_memory(model, place, on_device) from None


def release(place: Place) -> None:
    """Give back what modules held that nobody uses any more, also where a server has set it aside (`worker.py`)."""
    gc.unfreeze()
    gc.collect()
    _empty_cache(place.device)


def _empty_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _ran_out(error: BaseException) -> bool:
    words = ("DefaultCPUAllocator", "CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _out_of_memory(model: ModelConfig, place: Place, on_device: bool) -> OutOfMemory:
    what = ("显存", "graphics memory") if on_device else ("内存", "memory")
    row = smaller(model, place.memory, place.kind)
    zh, en = f"{what[0]}不足，已全部释放：", f"Out of {what[1]}; everything was freed: "
    if row is not None:
        peak = peak_bytes(model, row, place.kind) / 1e9
        zh += f"请用预设 {row.name}（约 {peak:.1f} GB，--memory {row.name}）以同样的种子再试；"
        en += f"try again with the preset {row.name} (about {peak:.1f} GB, --memory {row.name}) and the same seed; "
    return OutOfMemory(
        f"{zh}也可关闭其他程序、减少帧数或关闭超分后再试。",
        f"{en}or close other programs, ask for fewer frames, or switch super-resolution off, and try again.",
        None if row is None else row.name,
    )


@contextmanager
def threads(count: int | None = None) -> Iterator[None]:
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
