"""Memory presets of a model on this machine: predicted and measured peaks, and least times."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cogvideo.benchmarks.hardware import HardwareLimits, measure_machine
from cogvideo.benchmarks.memory_probe import PhaseMemory, probe_memory
from cogvideo.config import ModelConfig
from cogvideo.errors import CapacityError, OutOfMemoryError
from cogvideo.messages import message
from cogvideo.models.quantization import Compression
from cogvideo.runtime.device import DevicePlacement, placement_for
from cogvideo.runtime.memory_estimate import (
    ALLOWANCE,
    PHASES,
    gigabytes_read,
    peak_bytes,
    phase_bytes,
    superres_gigaflop,
)
from cogvideo.runtime.memory_presets import MEMORY_PRESETS, MemoryPreset, PlacementOptions
from cogvideo.runtime.oom import translate_oom
from cogvideo.units import format_bytes, format_gigabytes

USABLE = 0.94
"""Fraction of a GPU's memory that a process can allocate."""


def predicted(name: str, model: ModelConfig, place: DevicePlacement, seconds: float) -> str:
    """Return the table of all presets; ">" marks the default one."""
    machine = measure_machine(place, 1, 2**28, seconds)
    try:
        chosen = placement_for(model, PlacementOptions(str(place.device))).memory.name
    except CapacityError as error:
        chosen = ""
        print(f"{error.zh}\n{error.en}", file=sys.stderr)
    rows = [
        f"{name}, {machine.name}: {machine.gigabytes_per_second:.0f} GB/s, {machine.gigaflops:.0f} GFLOP/s; "
        f"{format_gigabytes(_free(place))} GB free",
        f"  {'preset':<8}{'peak':>9}{'at least':>11}  how",
    ]
    for row in MEMORY_PRESETS.values():
        if row.device == "cpu" and place.kind != "cpu":
            continue
        peak = format_gigabytes(peak_bytes(model, row, place.kind))
        least = least_seconds(model, row, machine, place.kind)
        mark = ">" if row.name == chosen else " "
        rows.append(f"{mark} {row.name:<8}{peak:>6} GB{least:>9.0f} s  {row.en}\n{'':<30}{row.zh}")
    rows.append(
        "peak: predicted from the model's sizes, if every layer can be compressed as its preset says; --measure counts "
        "the layers that stay exact. at least: time to read the weights and compute, on this machine."
    )
    rows.append(
        "峰值由模型尺寸推算，并假定每一层都能按预设压缩；--measure 会统计保留精确权重的层数。\n"
        "时间为本机读取权重和计算的最短秒数。可用 --measure 实测。"
    )
    return "\n".join(rows)


def least_seconds(model: ModelConfig, memory: MemoryPreset, machine: HardwareLimits, device: str) -> float:
    """Return the least seconds for a video of 33 frames with super-resolution."""
    return machine.floor(gigabytes_read(model, memory, device), 0) + machine.floor(0, superres_gigaflop(model))


def expectation(model: ModelConfig, place: DevicePlacement, seconds: float = 0.05) -> tuple[str, str]:
    """Return the least time of a video on this machine, in Chinese and English."""
    machine = measure_machine(place, 1, 2**28, seconds)
    minutes = least_seconds(model, place.memory, machine, place.kind) / 60
    return message("memory_report.full_video_time", minutes=minutes)


def _free(place: DevicePlacement) -> int:
    if place.kind == "cuda":
        return torch.cuda.mem_get_info(place.device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)


@dataclass(frozen=True)
class MemoryResult:
    """Measurement of one preset; `phases` is empty if memory was insufficient."""

    memory: MemoryPreset
    predicted: dict[str, int]
    phases: dict[str, PhaseMemory]
    compression: Compression = field(default_factory=Compression)

    def as_text(self) -> str:
        """Return the measured peak and time of each phase; with compressed layers, also how many stay exact."""
        if not self.phases:
            return f"{self.memory.name}: 内存不足 / out of memory"
        parts = (
            f"{name} {format_bytes(phase.bytes)} (predicted {format_bytes(self.predicted[name])}), "
            f"{phase.seconds:.1f} s"
            for name, phase in self.phases.items()
        )
        peak = max(phase.bytes for phase in self.phases.values())
        seconds = sum(phase.seconds for phase in self.phases.values())
        told = f"{self.memory.name}: {format_bytes(peak)}, {seconds:.1f} s · " + " · ".join(parts)
        zh, en = self.compression.sentences()
        return f"{told}\n  {zh}\n  {en}" if self.compression.layers else told

    def as_dict(self, model: str, dtype: torch.dtype) -> dict[str, Any]:
        """Return the result for --json. Memory in bytes, times in seconds for a video of 33 frames."""
        return {
            "model": model,
            "preset": self.memory.name,
            "dtype": str(dtype).removeprefix("torch."),
            "predicted": self.predicted,
            "measured": {name: phase.bytes for name, phase in self.phases.items()},
            "seconds": {name: phase.seconds for name, phase in self.phases.items()},
            "layers": self.compression.layers,
            "exact_layers": [name for name, _ in self.compression.exact],
            "full_scale_layers": list(self.compression.full_scales),
            "extra_bytes": self.compression.extra_bytes,
        }


def attempt(model: ModelConfig, models: Any, place: DevicePlacement, steps: int) -> MemoryResult:
    """Measure the preset of `place`. On a GPU, memory is limited to that of the GPU that the preset is made for."""
    expected = {phase: most for phase, most in phase_bytes(model, place.memory, place.kind).items() if phase in PHASES}
    _limit_gpu_memory(place)
    try:
        with translate_oom(model, place):
            done = probe_memory(models, place, steps)
            return MemoryResult(place.memory, expected, done.phases, done.compression)
    except OutOfMemoryError:
        return MemoryResult(place.memory, expected, {})


def _limit_gpu_memory(place: DevicePlacement) -> None:
    if place.kind == "cuda" and place.memory.vram_gb:
        total = torch.cuda.get_device_properties(place.device).total_memory
        allowed = place.memory.vram_gb * 2**30 * USABLE - ALLOWANCE
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), place.device)
