"""Out-of-memory handling: memory is freed, and the error contains the remedy."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cogvideo.config import ModelConfig
from cogvideo.errors import OutOfMemoryError
from cogvideo.messages import message
from cogvideo.runtime.device import DevicePlacement
from cogvideo.runtime.memory_estimate import peak_bytes, smaller_preset
from cogvideo.units import format_gigabytes


@contextmanager
def translate_oom(model: ModelConfig, place: DevicePlacement) -> Iterator[None]:
    """Convert out-of-memory errors in the block. Raises OutOfMemoryError, which names the next smaller preset.

    The variables of the failed call are freed. The caller has to free its own.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_oom(error):
            raise
        traceback.clear_frames(error.__traceback__)  # their variables reference the largest tensors
        on_device = place.device.type != "cpu"
    else:
        return
    free_memory(place)
    raise _out_of_memory(model, place, on_device) from None


def free_memory(place: DevicePlacement) -> None:
    """Collect garbage, including objects that a server has frozen (`worker.py`), and empty the CUDA cache."""
    gc.unfreeze()
    gc.collect()
    empty_device_cache(place.device)


def empty_device_cache(device: torch.device) -> None:
    """Return unused cached memory to the device. No-op on a CPU."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _is_oom(error: BaseException) -> bool:
    messages = ("DefaultCPUAllocator", "CUDA out of memory", "CUDA error: out of memory", "STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(message in str(error) for message in messages)


def _out_of_memory(model: ModelConfig, place: DevicePlacement, on_device: bool) -> OutOfMemoryError:
    memory_name = message("oom.gpu_memory") if on_device else message("oom.main_memory")
    row = smaller_preset(model, place.memory, place.kind)
    zh, en = message("oom.out_of_memory", memory_name_zh=memory_name[0], memory_name_en=memory_name[1])
    if row is not None:
        peak = format_gigabytes(peak_bytes(model, row, place.kind))
        zh += f"请用预设 {row.name}（约 {peak} GB，--memory {row.name}）和相同种子重试。"
        en += f"Try again with the preset {row.name} (about {peak} GB, --memory {row.name}) and the same seed. "
    return OutOfMemoryError(
        *message("oom.other_remedies", zh_value=zh, en_value=en),
        None if row is None else row.name,
    )
