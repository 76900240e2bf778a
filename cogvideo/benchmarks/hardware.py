"""Limits of the hardware: measured memory bandwidth and arithmetic rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from cogvideo.runtime.device import DevicePlacement, torch_threads
from kernels import cpu_decode
from kernels.bench import milliseconds


@dataclass(frozen=True)
class HardwareLimits:
    """Measured bandwidth and arithmetic rate of a device, with a number of CPU threads."""

    name: str
    threads: int
    gigabytes_per_second: float
    gigaflops: float

    def floor(self, gigabytes: float, gigaflop: float) -> float:
        """Return the least seconds to move `gigabytes` and to compute `gigaflop`."""
        return max(gigabytes / self.gigabytes_per_second, gigaflop / self.gigaflops)


def measure_machine(
    place: DevicePlacement, cores: int, working_set: int, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> HardwareLimits:
    """Measure a device. Each measurement takes `seconds`.

    Bandwidth: the better of a large copy and of a product of a matrix of `working_set` bytes and a vector. A model that
    fits in a cache is thus compared with the cache. Rate: a large matrix product, by PyTorch or by our kernel.
    """
    device, dtype, gpu = place.device, place.dtype, place.device.type == "cuda"
    with torch_threads(cores) if not gpu else nullcontext():
        side = 8192 if gpu else 1024
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        product = milliseconds(lambda: a @ b, device, seconds, clock)
        if cpu_decode.unsupported_reason(a) is None:
            ours = cpu_decode.PackedMatrix(cpu_decode.Affine(b, a[0]))
            product = min(product, milliseconds(lambda: ours(a, cores), device, seconds, clock))
        source = torch.zeros((1024 if gpu else 128) * 2**20, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        copied = 2 * source.numel() / milliseconds(lambda: target.copy_(source), device, seconds, clock)
        width = 1024
        matrix = torch.randn(max(1, working_set // (width * dtype.itemsize)), width, device=device, dtype=dtype)
        vector = torch.randn(width, device=device, dtype=dtype)
        streamed = matrix.numel() * dtype.itemsize / milliseconds(lambda: matrix @ vector, device, seconds, clock)
    name = torch.cuda.get_device_name(device) if gpu else "CPU"
    return HardwareLimits(name, cores, max(copied, streamed) / 1e6, 2 * side**3 / product / 1e6)
