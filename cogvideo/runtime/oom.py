"""Running out of memory: release of what can be released, and an error that contains the remedy."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cogvideo.config import ModelConfig
from cogvideo.errors import OutOfMemoryError
from cogvideo.runtime.device import DevicePlacement
from cogvideo.runtime.memory_estimate import peak_bytes, smaller_preset


@contextmanager
def translate_oom(model: ModelConfig, place: DevicePlacement) -> Iterator[None]:
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
    free_memory(place)
    raise _out_of_memory(model, place, on_device) from None


def free_memory(place: DevicePlacement) -> None:
    """Give back what modules held that nobody uses any more, also where a server has set it aside (`worker.py`)."""
    gc.unfreeze()
    gc.collect()
    empty_device_cache(place.device)


def empty_device_cache(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _ran_out(error: BaseException) -> bool:
    words = ("DefaultCPUAllocator", "CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(word in str(error) for word in words)


def _out_of_memory(model: ModelConfig, place: DevicePlacement, on_device: bool) -> OutOfMemoryError:
    what = ("显存", "graphics memory") if on_device else ("内存", "memory")
    row = smaller_preset(model, place.memory, place.kind)
    zh, en = f"{what[0]}不足，已全部释放：", f"Out of {what[1]}; everything was freed: "
    if row is not None:
        peak = peak_bytes(model, row, place.kind) / 1e9
        zh += f"请用预设 {row.name}（约 {peak:.1f} GB，--memory {row.name}）以同样的种子再试；"
        en += f"try again with the preset {row.name} (about {peak:.1f} GB, --memory {row.name}) and the same seed; "
    return OutOfMemoryError(
        f"{zh}也可关闭其他程序、减少帧数或关闭超分后再试。",
        f"{en}or close other programs, ask for fewer frames, or switch super-resolution off, and try again.",
        None if row is None else row.name,
    )
