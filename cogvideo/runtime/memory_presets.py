"""Memory presets: precision, placement and batch size for cards of different sizes."""

from __future__ import annotations

from dataclasses import dataclass

from cogvideo.config import WeightFormat


@dataclass(frozen=True)
class MemoryPreset:
    """How a model is held while it computes. `cogvideo.runtime.memory_estimate` predicts what that takes."""

    name: str
    device: str
    """"cuda" or "cpu": where it is chosen from. Named, it may be used anywhere."""
    zh: str
    en: str
    vram_gb: int = 0
    """GiB of the card that it is made for."""
    weights: WeightFormat = "exact"
    fused: bool = False
    """On a GPU with room besides a copy of some weights, laid side by side for quicker steps (`models.fused`)."""
    swap_networks: bool = False
    """The backbone stays on the device; of the networks' own parts only that of the one at work is there."""
    stream_layers: bool = False
    """Super-resolution with exact weights, which come from host memory layer by layer, for all frames at once."""
    offload: bool = False
    """Every matrix waits in host memory and comes for its product (accelerate): least memory, by far the slowest."""
    int8_cache: bool = False
    """Keys and values in 8 bits, with a scale for every position and head. The fast kernels and graphs of a card do not
    take them, so steps are slower: for a card that has no other way."""
    max_batch_rows: int = 8
    """Sequences of one batch: a video's last round of interpolation has 8, each needs keys and values of its own."""
    frames_per_pass: int = 4
    """Frames that super-resolution and the codec compute at once."""

    @property
    def about(self) -> str:
        """How the model is held, in both languages."""
        return f"{self.zh} / {self.en}"


MEMORY_PRESETS: dict[str, MemoryPreset] = {
    row.name: row
    for row in (
        MemoryPreset(
            "a100",
            "cuda",
            "半精度，所有网络都在显卡上",
            "half precision, all on the card",
            vram_gb=80,
            fused=True,
            max_batch_rows=16,
            frames_per_pass=8,
        ),
        MemoryPreset("48g", "cuda", "同上，每批更小", "the same, smaller batches", vram_gb=48),
        MemoryPreset(
            "24g",
            "cuda",
            "8 位权重，所有网络都在显卡上",
            "weights in 8 bits, all on the card",
            vram_gb=24,
            weights="int8",
            max_batch_rows=4,
            frames_per_pass=2,
        ),
        MemoryPreset(
            "16g",
            "cuda",
            "8 位权重，各网络自己的部分轮流上卡，超分逐层精确计算",
            "weights in 8 bits, the networks' own parts take turns, exact super-resolution layer by layer",
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
            "同上，权重为 4 位（NF4），缓存为 8 位",
            "the same with weights in 4 bits (NF4) and the cache in 8",
            vram_gb=8,
            weights="nf4",
            swap_networks=True,
            stream_layers=True,
            int8_cache=True,
            max_batch_rows=1,
            frames_per_pass=1,
        ),
        MemoryPreset("cpu", "cpu", "全精度，不用显卡", "full precision, no card"),
    )
}
"""Best first."""
