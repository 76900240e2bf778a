"""Estimate of a model's memory under a memory preset, and choice of a preset that fits.

In: `ModelConfig`, `MemoryPreset`, free bytes. Out: bytes, or a preset. Weights and caches are exact. Working memory is
an upper estimate, checked against measurements on a CPU (`python -m cogvideo memory`).

The estimate assumes the smallest form of each layer that the preset allows. The additional memory of layers that stay
exact is computed while the weights load (`models.quantization.Compression.extra_bytes`).
"""

from __future__ import annotations

import os
from typing import Final

from cogvideo.config import FRAME_COUNTS, MAX_IDLE_CACHES, ModelConfig
from cogvideo.errors import CapacityError, RequestError
from cogvideo.messages import message
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, MemoryPreset
from cogvideo.token_layout import Stage, TokenLayout
from cogvideo.units import format_gigabytes

HALF: Final = 2
"""Bytes of a number on a GPU (fp16)."""
FULL: Final = 4

GUIDED_ROWS: Final = 2
"""Rows of a keyframe with guidance: conditional and unconditional."""

LANES: Final = 2
"""Frames that interpolation decodes in parallel."""

CAPTURED: Final = 5 * 10**7
"""Bytes of private memory of a captured step: the allocator's blocks of 2 and 20 MiB (an estimate, not measured)."""

NF4_BLOCK: Final = 64
NF4_OUTER: Final = 256
"""Weights that share a scale (`NF4_BLOCK`), and scales that share an outer scale."""
NF4_TABLES: Final = (16 + 256 + 1) * FULL
"""Bytes for each matrix: the 16 values, those of the scales, and the scales' offset."""

WIDTHS: Final = 15
"""Working memory of a layer that reads many slots, in units of its hidden states (measured: 14.1)."""

PARALLEL_FRAMES: Final = 128
"""Fine tokens that a CPU samples at once. A GPU samples a frame."""

DRAWING: Final = 4
"""Copies of the fp32 logits during sampling."""

ALLOWANCE: Final = 5 * 10**8
"""Bytes for the codec's weights (0.1 GB), library workspaces and fragmentation (an estimate, not measured on a GPU).

The codec's working memory, 1 kB for each pixel of a pass, is less than that of a layer of super-resolution."""

LONG: Final = 1000.0
"""Gigabytes read for one video above which generation takes longer than seconds on any machine."""

ENVIRONMENT: Final = "COGVIDEO_MEMORY"

Phase = str
PHASES: Final = ("keyframes", "interpolate", "superres")


def parameters(model: ModelConfig) -> tuple[int, int, dict[str, int]]:
    """Count the parameters: of the backbone's matrices, the rest of the backbone, and each network's own part."""
    h, layers = model.hidden, model.layers
    matrices = 12 * h * h * layers
    rest = 17 * h * layers + 2 * h + (model.vocab_size + model.base_positions) * h
    attention = (4 * h * h + 4 * h) * layers
    video = attention + h * layers + model.extra_positions * h
    fine = model.fine_grid[0] * model.fine_grid[1]
    return matrices, rest, {"stage1": video, "stage2": video, "superres": attention + fine * h}


def linear_bytes(outputs: int, inputs: int, memory: MemoryPreset, number: int) -> int:
    """Return the bytes of one weight matrix in the preset's format; NF4 with 8-bit scales.

    `number`: bytes of an exact weight.
    """
    count = outputs * inputs
    if memory.weights == "exact":
        return count * number
    if memory.weights == "nf4":
        scales = -(-count // NF4_BLOCK)
        return -(-count // 2) + scales + -(-scales // NF4_OUTER) * FULL + NF4_TABLES
    return count + outputs * FULL


def backbone_bytes(model: ModelConfig, memory: MemoryPreset, number: int) -> int:
    """Compute the bytes of the shared backbone."""
    h, rest = model.hidden, parameters(model)[1]
    shapes = ((3 * h, h), (h, h), (4 * h, h), (h, 4 * h))
    return model.layers * sum(linear_bytes(*shape, memory, number) for shape in shapes) + rest * number


def network_bytes(model: ModelConfig, part: str, memory: MemoryPreset, number: int) -> int:
    """Compute the bytes of a network's own part: the second attention and the extra positions."""
    h = model.hidden
    other = parameters(model)[2][part] - 4 * h * h * model.layers
    small = linear_bytes(3 * h, h, memory, number) + linear_bytes(h, h, memory, number)
    return model.layers * small + other * number


def weight_bytes(model: ModelConfig, memory: MemoryPreset, device: str | None = None) -> dict[Phase, int]:
    """Compute the bytes of the weights that are on the device in each phase."""
    number = _number(memory, device)
    h, rest = model.hidden, parameters(model)[1] * number
    head = model.image_tokens * h * FULL if number == HALF else 0  # a copy in fp32
    if memory.offload:
        largest = 4 * h * h * number
        own = {part: count - 4 * h * h * model.layers for part, count in parameters(model)[2].items()}
        return dict.fromkeys(PHASES, rest + sum(own.values()) * number + largest + head)
    common = backbone_bytes(model, memory, number) + head
    if memory.fused and number == HALF:  # of both stages
        common += 2 * 8 * h * h * model.layers * number
    packs = [network_bytes(model, part, memory, number) for part in ("stage1", "stage2", "superres")]
    if memory.stream_layers:  # two exact layers at a time; on a CPU the rest is copied too
        other = parameters(model)[2]["superres"] - 4 * h * h * model.layers
        packs[2] = (2 * (16 * h * h + 17 * h) + other) * number + (rest if number == FULL else 0)
    if memory.swap_networks:
        return {phase: common + pack for phase, pack in zip(PHASES, packs, strict=True)}
    return dict.fromkeys(PHASES, common + sum(packs))


def cache_bytes(model: ModelConfig, stage: Stage, rows: int, memory: MemoryPreset, device: str | None = None) -> int:
    """Compute the bytes of keys and values of `rows` sequences of a stage, with the longest text."""
    layout, text, number = TokenLayout(model), model.text_length, _number(memory, device)
    spatial = (1 if stage == 1 else LANES) * (text + model.tokens_per_frame)
    slots = sum(spatial + layout.temporal_keys(stage, layer % 2, text).capacity for layer in range(model.layers))
    slot_bytes = model.hidden + model.heads * number if memory.int8_cache else model.hidden * number
    return 2 * rows * slots * slot_bytes  # keys and values


def cache_pool_bytes(model: ModelConfig, memory: MemoryPreset, device: str | None = None) -> int:
    """Compute the bytes of the largest batch's cache: the limit of the cache in use and idle caches together."""
    batches: tuple[tuple[Stage, int], ...] = (1, GUIDED_ROWS), (2, memory.max_batch_rows)
    return max(cache_bytes(model, stage, rows, memory, device) for stage, rows in batches)


def idle_cache_bytes(model: ModelConfig, memory: MemoryPreset, device: str | None = None) -> int:
    """Compute the bytes of idle caches in any phase. 0 if caches are not pooled (see `models.cache_pool`)."""
    pooled = (device or memory.device) == "cuda" and not (memory.swap_networks or memory.offload or memory.int8_cache)
    return cache_pool_bytes(model, memory, device) if pooled else 0


def captured_bytes(memory: MemoryPreset, device: str | None = None) -> int:
    """Compute the bytes of captured steps (`models.cuda_graph`): two for each cache, of one frame and of two."""
    if (device or memory.device) != "cuda" or memory.offload or memory.int8_cache:
        return 0
    return 2 * CAPTURED * (1 if memory.swap_networks else MAX_IDLE_CACHES)


def step_bytes(model: ModelConfig, memory: MemoryPreset, rows: int, given: int, device: str | None = None) -> int:
    """Compute the working memory of stages 1 and 2: of the prefill, which takes more than decoding.

    `rows` sequences with text and `given` frames.
    """
    number, h = _number(memory, device), model.hidden
    slots = model.text_length + given * model.tokens_per_frame
    matrix = 0 if memory.weights == "exact" else 4 * h * h * (number + FULL)
    return rows * (slots * h * WIDTHS + _masks(model, given)) * number + matrix


def superres_bytes(model: ModelConfig, memory: MemoryPreset, device: str | None = None) -> int:
    """Compute the working memory of super-resolution: logits and the widest layer for the frames of one pass.

    If layers are streamed, add the states of all frames.
    """
    number, frames = _number(memory, device), memory.frames_per_pass
    fine = model.fine_grid[0] * model.fine_grid[1]
    slots = model.superres_text_length + model.tokens_per_frame + fine
    rows = PARALLEL_FRAMES if number == FULL else fine
    sampling = (rows * DRAWING + model.hidden) * model.image_tokens * FULL
    states = (FRAME_COUNTS[-1] if memory.stream_layers else frames) * slots * model.hidden * number
    return max(frames * slots * model.hidden * WIDTHS * number, sampling) + states


def phase_bytes(model: ModelConfig, memory: MemoryPreset, device: str | None = None) -> dict[Phase, int]:
    """Estimate the peak device memory of each phase of a video of 33 frames, in bytes."""
    weights = weight_bytes(model, memory, device)
    given = -(-model.keyframes // 2)
    rows, idle = memory.max_batch_rows, idle_cache_bytes(model, memory, device)
    stored = {
        "keyframes": max(idle, cache_bytes(model, 1, GUIDED_ROWS, memory, device)),
        "interpolate": max(idle, cache_bytes(model, 2, rows, memory, device)),
        "superres": idle,
    }
    working = {
        "keyframes": step_bytes(model, memory, GUIDED_ROWS, 1, device),
        "interpolate": step_bytes(model, memory, rows, given, device),
        "superres": superres_bytes(model, memory, device),
    }
    captured = captured_bytes(memory, device)
    return {phase: weights[phase] + stored[phase] + captured + working[phase] for phase in PHASES}


def peak_bytes(model: ModelConfig, memory: MemoryPreset, device: str | None = None) -> int:
    """Estimate the peak memory of a video in bytes, on `device` (None: the preset's device type)."""
    return max(phase_bytes(model, memory, device).values()) + ALLOWANCE


def gigabytes_read(model: ModelConfig, memory: MemoryPreset, device: str | None = None) -> float:
    """Estimate the gigabytes of weights that stages 1 and 2 read for 33 frames. Each step reads all weights once."""
    number, h = _number(memory, device), model.hidden
    head = model.image_tokens * h * number
    attention = model.layers * (linear_bytes(3 * h, h, memory, number) + linear_bytes(h, h, memory, number))
    backbone = attention + model.layers * 2 * linear_bytes(4 * h, h, memory, number) + head
    layout, size = TokenLayout(model), model.tokens_per_frame
    passes = sum(-(-(2**level) // memory.max_batch_rows) for level in range(1, len(FRAME_COUNTS)))
    both = (model.keyframes - 1) * size + passes * (size + layout.wavefront_lag)
    return (size * backbone + both * (backbone + attention)) / 1e9


def is_slow(model: ModelConfig, memory: MemoryPreset, device: str | None = None) -> bool:
    """Return whether a video takes so long that the user should see an estimate first."""
    return gigabytes_read(model, memory, device) > LONG


def superres_gigaflop(model: ModelConfig) -> float:
    """Compute the gigaflop of the matrix products in super-resolution of 33 frames."""
    fine = model.fine_grid[0] * model.fine_grid[1]
    slots = model.superres_text_length + model.tokens_per_frame + fine
    frame = 2 * 12 * model.hidden**2 * slots * model.layers + 2 * fine * model.image_tokens * model.hidden
    return FRAME_COUNTS[-1] * frame / 1e9


def choose_preset(model: ModelConfig, device: str, free: int, wanted: str | None = None) -> MemoryPreset:
    """Return the named preset, or the first one for `device` ("cuda", "cpu") that fits into `free` bytes.

    `wanted` None: the name in the environment variable COGVIDEO_MEMORY, if it is set.

    Raises RequestError if the name is unknown, CapacityError if no preset fits.
    """
    name = wanted or os.environ.get(ENVIRONMENT) or None
    if name is not None:
        if name not in MEMORY_PRESETS:
            available = ", ".join(MEMORY_PRESETS)
            raise RequestError(*message("memory_estimate.unknown_preset", name=name, available=available))
        return MEMORY_PRESETS[name]
    rows = [row for row in MEMORY_PRESETS.values() if row.device == device]
    for row in rows:
        if peak_bytes(model, row) <= free:
            return row
    least = min(peak_bytes(model, row) for row in rows)
    needed, available = format_gigabytes(least), format_gigabytes(free)
    raise CapacityError(
        *message("memory_estimate.not_enough_memory", device=device, needed=needed, available=available)
    )


def smaller_preset(model: ModelConfig, memory: MemoryPreset, device: str) -> MemoryPreset | None:
    """Return the best preset that requires less than `memory` on `device` ("cuda", "cpu"). None if there is none."""
    limit = peak_bytes(model, memory, device)
    rows = [row for row in MEMORY_PRESETS.values() if row.device == "cuda"]
    return next((row for row in rows if peak_bytes(model, row, device) < limit), None)


def _number(memory: MemoryPreset, device: str | None) -> int:
    return FULL if (device or memory.device) == "cpu" else HALF


def _masks(model: ModelConfig, given: int) -> int:
    """Count the numbers in the masks of one sequence during the prefill of `given` frames."""
    size, text = model.tokens_per_frame, model.text_length
    return given * size * (text + size) + given * size * (text + given * model.window**2)
