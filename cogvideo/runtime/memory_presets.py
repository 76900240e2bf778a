"""Memory presets: precision, placement and batch sizes for GPUs of different sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cogvideo.config import WeightFormat
from cogvideo.errors import RequestError
from cogvideo.messages import message


@dataclass(frozen=True)
class MemoryPreset:
    """Precision, placement and batch sizes of a model. `memory_estimate` computes the memory that it requires."""

    name: str
    device: str
    """"cuda" or "cpu": the device type for which it is chosen automatically. By name it can be used anywhere."""
    zh: str
    en: str
    vram_gb: int = 0
    """GiB of the GPU that it is intended for."""
    weights: WeightFormat = "exact"
    fused: bool = False
    """On a GPU with enough memory: decode faster with a concatenated copy of some weights (`models.fused_decode`)."""
    swap_networks: bool = False
    """The backbone stays on the device, but only the active network's own weights are there."""
    stream_layers: bool = False
    """Super-resolution with exact weights, copied from host memory layer by layer, for all frames at once."""
    offload: bool = False
    """Every weight is copied from host memory for its product (accelerate): least memory, by far the slowest."""
    int8_cache: bool = False
    """Keys and values in 8 bits, with a scale for every position and head. The fast GPU kernels and CUDA graphs do not
    support them, so steps are slower: for GPUs with too little memory otherwise."""
    max_batch_rows: int = 8
    """Sequences of one batch. A video's last round of interpolation has 8; each has its own keys and values."""
    frames_per_pass: int = 4
    """Frames that super-resolution and the codec compute at once."""

    @property
    def about(self) -> str:
        """Description in both languages."""
        return f"{self.zh} / {self.en}"


MEMORY_PRESETS: dict[str, MemoryPreset] = {
    row.name: row
    for row in (
        MemoryPreset(
            "a100",
            "cuda",
            *message("memory_presets.fp16_gpu"),
            vram_gb=80,
            fused=True,
            max_batch_rows=16,
            frames_per_pass=8,
        ),
        MemoryPreset(
            "48g",
            "cuda",
            *message("memory_presets.fp16_small_batches"),
            vram_gb=48,
        ),
        MemoryPreset(
            "24g",
            "cuda",
            *message("memory_presets.int8_gpu"),
            vram_gb=24,
            weights="int8",
            max_batch_rows=4,
            frames_per_pass=2,
        ),
        MemoryPreset(
            "16g",
            "cuda",
            *message("memory_presets.int8_swapped"),
            vram_gb=16,
            weights="int8",
            swap_networks=True,
            stream_layers=True,
            max_batch_rows=2,
            frames_per_pass=2,
        ),
        MemoryPreset(
            "8g",
            "cuda",
            *message("memory_presets.nf4_swapped"),
            vram_gb=8,
            weights="nf4",
            swap_networks=True,
            stream_layers=True,
            int8_cache=True,
            max_batch_rows=1,
            frames_per_pass=1,
        ),
        MemoryPreset("cpu", "cpu", *message("memory_presets.fp32_cpu")),
    )
}
"""Best first."""


@dataclass(frozen=True)
class PlacementOptions:
    """Options for the device of a model and the storage of its weights. None: chosen automatically.

    Raises RequestError if options are invalid or exclude one another.
    """

    device: str | None = None
    """"cpu", "cuda" or "cuda:1"."""
    memory_preset: str | None = None
    """A name in `MEMORY_PRESETS`. None: the environment variable COGVIDEO_MEMORY, or else the fastest that fits."""
    quantization: Literal["int8"] | None = None
    """Instead of a memory preset: LLM.int8 of bitsandbytes for the layers' weights."""
    offload: Literal["layers"] | None = None
    """Instead of a memory preset: each weight is on the device for its product alone (accelerate)."""

    def __post_init__(self) -> None:
        given = [name for name in ("memory_preset", "quantization", "offload") if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(
                *message(
                    "memory_presets.conflicting_options", given_zh=" 和 ".join(given), given_en=" and ".join(given)
                )
            )
        for name, value, allowed in (("quantization", self.quantization, "int8"), ("offload", self.offload, "layers")):
            if value not in (None, allowed):
                raise RequestError(*message("memory_presets.invalid_value", name=name, value=value, allowed=allowed))
