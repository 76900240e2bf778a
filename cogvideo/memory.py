"""How much memory a model takes under a memory preset, predicted from its sizes, and which preset fits. No torch.

In: `ModelConfig`, `MemoryPreset`, free bytes. Out: bytes, or a preset. Weights and caches are counted exactly; what
computing takes besides is an estimate, and on a GPU nothing of this has been measured yet.
"""

from __future__ import annotations

import os
from typing import Final

from cogvideo.config import MEMORY, MemoryPreset, ModelConfig
from cogvideo.errors import CapacityError, RequestError
from cogvideo.layout import Layout

HALF: Final = 2
"""Bytes of a number on a GPU (fp16)."""
FULL: Final = 4

GUIDED_ROWS: Final = 2
"""Keyframes with guidance are drawn in two rows: with the prompt and without."""

LANES: Final = 2
"""Frames that interpolation draws at the same time."""

SUPERRES_WIDTHS: Final = 16
"""Hidden states' worth of memory that a layer of super-resolution takes while it computes (estimate)."""

ALLOWANCE: Final = 2 * 10**9
"""For the driver's context, the codec with its activations, and gaps between allocations (estimate)."""

ENVIRONMENT: Final = "COGVIDEO_MEMORY"


def parameters(model: ModelConfig) -> tuple[int, int, dict[str, int]]:
    """(numbers in the matrices of the backbone's layers, in the rest of the backbone, in each network's own part)."""
    h, layers = model.hidden, model.layers
    matrices = 12 * h * h * layers
    rest = 17 * h * layers + 2 * h + (model.vocab_size + model.base_positions) * h
    attention = (4 * h * h + 4 * h) * layers
    video = attention + h * layers + model.extra_positions * h
    fine = model.fine_grid[0] * model.fine_grid[1]
    return matrices, rest, {"stage1": video, "stage2": video, "superres": attention + fine * h}


def weight_bytes(model: ModelConfig, memory: MemoryPreset) -> int:
    """Bytes of the weights that are on the device at the same time."""
    matrices, rest, own = parameters(model)
    parts = max(own.values()) if memory.offload else sum(own.values())
    number = FULL if memory.device == "cpu" else HALF
    if not memory.eight_bit:
        return (matrices + rest + parts) * number
    small = 4 * model.hidden**2 * model.layers * (1 if memory.offload else len(own))  # of attention_plus
    return (matrices + small) + (rest + parts - small) * number


def cache_bytes(model: ModelConfig, number: int = HALF) -> int:
    """Keys and values of the stage that keeps more of them, for the longest text."""
    layout, text = Layout(model), model.text_length
    lane = text + model.tokens_per_frame
    first = GUIDED_ROWS * 2 * (lane + layout.shelf(1, 0, text).capacity)  # of two layers, one of each parity
    second = sum(LANES * lane + layout.shelf(2, parity, text).capacity for parity in (0, 1))
    return max(first, second) * model.layers * model.hidden * number  # half the layers, but keys and values


def superres_bytes(model: ModelConfig, frames: int, number: int = HALF) -> int:
    """Logits in both precisions and the widest layer, for `frames` frames at once (estimate)."""
    fine = model.fine_grid[0] * model.fine_grid[1]
    slots = model.superres_text_length + model.tokens_per_frame + fine
    logits = fine * model.image_tokens * (number + FULL)
    return frames * (logits + slots * model.hidden * SUPERRES_WIDTHS * number)


def peak_bytes(model: ModelConfig, memory: MemoryPreset) -> int:
    """The most memory that drawing a video is expected to take, on the device."""
    number = FULL if memory.device == "cpu" else HALF
    working = max(cache_bytes(model, number), superres_bytes(model, memory.frames_per_pass, number))
    return weight_bytes(model, memory) + working + ALLOWANCE


def choose(model: ModelConfig, device: str, free: int, wanted: str | None = None) -> MemoryPreset:
    """The named preset, or the first one for `device` ("cuda", "cpu") that fits into `free` bytes.

    `wanted` None: what the environment's COGVIDEO_MEMORY says, if anything. Raises RequestError for a name that does
    not exist or is for another device, CapacityError where nothing fits.
    """
    name = wanted or os.environ.get(ENVIRONMENT) or None
    rows = [row for row in MEMORY.values() if row.device == device]
    if name is not None:
        if name not in {row.name for row in rows}:
            there = ", ".join(row.name for row in rows)
            raise RequestError(
                f"设备 {device} 没有名为 {name} 的显存预设：可用的有 {there}。",
                f"There is no memory preset {name} for {device}: there are {there}.",
            )
        return MEMORY[name]
    for row in rows:
        if peak_bytes(model, row) <= free:
            return row
    least = min(peak_bytes(model, row) for row in rows)
    raise CapacityError(
        f"该模型在 {device} 上至少需要约 {least / 1e9:.1f} GB，目前仅有 {free / 1e9:.1f} GB 可用："
        "请关闭其他程序，换用更大的显卡，或使用 --model mini。",
        f"On {device} this model takes about {least / 1e9:.1f} GB at least, and {free / 1e9:.1f} GB are free: close "
        "other programs, take a larger card, or use --model mini.",
    )
