"""Benchmark of every kernel and its PyTorch forms: milliseconds, MiB, and the fraction of the floor.

The floor of an operation is the longer of two times. One is that of reading its inputs and writing its outputs once at
this machine's bandwidth. The other is that of its arithmetic at this machine's rate. Both limits are measured first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import torch

from kernels import decode_attention as decoding
from kernels import local_attention as local
from kernels import reference, sandwich_norm, w8a16

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class KernelShape:
    """Sizes of one layer."""

    samples: int
    """Frames of a super-resolution pass, and rows of a decoding step."""
    heads: int
    coarse: tuple[int, int]
    upscale: int
    head: int
    places: tuple[int, int]
    """Keys of a slot in the middle of the last keyframe, in the spatial and in the temporal channel."""
    fine_window: tuple[int, int] = (9, 5)
    coarse_window: tuple[int, int] = (5, 5)

    @property
    def fine(self) -> tuple[int, int]:
        return (self.coarse[0] * self.upscale, self.coarse[1] * self.upscale)


SHAPES = {
    "published": KernelShape(samples=4, heads=48, coarse=(20, 20), upscale=3, head=64, places=(220, 1820)),
    "mini": KernelShape(samples=4, heads=6, coarse=(8, 8), upscale=3, head=32, places=(48, 304)),
    "toy": KernelShape(samples=1, heads=2, coarse=(4, 4), upscale=3, head=16, places=(12, 76)),
}


@dataclass(frozen=True)
class HardwareLimits:
    """Measured limits of this machine."""

    name: str
    gigabytes_per_second: float
    gigaflops: float


@dataclass(frozen=True)
class KernelResult:
    """One row of the table."""

    operation: str
    form: str
    milliseconds: float | None
    mebibytes: float | None
    floor_milliseconds: float
    note: str = ""

    @property
    def fraction_of_floor(self) -> float | None:
        return self.floor_milliseconds / self.milliseconds if self.milliseconds else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, or JSON, and return 0."""
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    shape = SHAPES[options.shape or ("published" if device.type == "cuda" else "toy")]
    dtype = DTYPES[options.dtype or ("fp16" if device.type == "cuda" else "fp32")]
    machine = measure_machine(device, dtype, options.seconds)
    rows = [
        *local_attention_rows(shape, device, dtype, machine, options.seconds),
        *decode_attention_rows(shape, device, dtype, machine, options.seconds),
        *int8_rows(shape, device, dtype, machine, options.seconds),
        *sandwich_rows(shape, device, dtype, machine, options.seconds),
    ]
    if options.json:
        lines = [
            asdict(row) | {"fraction_of_floor": row.fraction_of_floor, "of_floor": row.fraction_of_floor}
            for row in rows
        ]
        described = {"shape": asdict(shape), "dtype": str(dtype), "machine": asdict(machine), "rows": lines}
        print(json.dumps(described, ensure_ascii=False, indent=1))
    else:
        print(table(shape, dtype, machine, rows))
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser with bilingual errors, as in `cogvideo.cli.console`, which this package must not import."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"参数有误（{message}）：用法见 --help。\nWrong arguments: {message}. For usage, see --help.\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = _Parser(prog="python -m kernels.bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--shape", choices=tuple(SHAPES), help="default: published on a GPU, toy on a CPU")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for repeating each form (default: 1)")
    parser.add_argument("--json", action="store_true")
    return parser


# --- measuring ------------------------------------------------------------------------------------------------------


def measure_machine(device: torch.device, dtype: torch.dtype, seconds: float) -> HardwareLimits:
    """Measure the bandwidth of a large copy and the rate of a large matrix product in `dtype`."""
    side = 8192 if device.type == "cuda" else 768
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty((512 if device.type == "cuda" else 64) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = milliseconds(lambda: target.copy_(source), device, seconds)
    product = milliseconds(lambda: a @ b, device, seconds)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return HardwareLimits(name, 2 * source.numel() / copy / 1e6, 2 * side**3 / product / 1e6)


def milliseconds(
    call: Callable[[], object], device: torch.device, seconds: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Measure the median time of a call, repeated for about `seconds` and at least three times after a warm-up.

    `clock`: in seconds, used on a CPU.
    """
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds * 1000:
        times.append(_once(call, device, clock))
    return statistics.median(times)


def _once(call: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    if device.type != "cuda":
        start = clock()
        call()
        return (clock() - start) * 1000
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def mebibytes(call: Callable[[], object], device: torch.device) -> float:
    """Measure the peak memory that a call allocates, in MiB."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # suppress the profiler's own messages
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    allocated = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: int(e["args"]["Ev Idx"])):
        allocated += int(event["args"]["Bytes"])
        peak = max(peak, allocated)
    return peak / 2**20


# --- operations -----------------------------------------------------------------------------------------------------


def local_attention_rows(
    shape: KernelShape, device: torch.device, dtype: torch.dtype, machine: HardwareLimits, seconds: float
) -> Iterator[KernelResult]:
    """Measure the forward pass, and forward with backward, of each form that is supported here."""
    tensors = _tensors(shape, device, dtype)
    windows = reference.LocalWindows(shape.fine, shape.coarse, shape.fine_window, shape.coarse_window)
    forms = {"fast": local.local_attention, "plain": reference.local_attention}
    for operation, backward in (("local attention", False), ("local attention, with gradients", True)):
        floor = local_attention_floor(shape, dtype, machine, backward)
        for form, function in forms.items():
            reason = local.unsupported_reason(tensors[0]) if form == "fast" else None
            if reason is not None:
                yield KernelResult(operation, form, None, None, floor, reason)
                continue

            def call(function: Callable[..., torch.Tensor] = function, backward: bool = backward) -> None:
                with torch.set_grad_enabled(backward):
                    out = function(*tensors, windows)
                if backward:
                    torch.autograd.grad(out, tensors, torch.ones_like(out))

            yield KernelResult(operation, form, milliseconds(call, device, seconds), mebibytes(call, device), floor)


def _tensors(shape: KernelShape, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    fine, coarse = shape.fine[0] * shape.fine[1], shape.coarse[0] * shape.coarse[1]
    return [
        torch.randn(shape.samples, shape.heads, cells, shape.head, device=device, dtype=dtype, requires_grad=True)
        for cells in (fine, fine, fine, coarse, coarse)
    ]


def local_attention_floor(shape: KernelShape, dtype: torch.dtype, machine: HardwareLimits, backward: bool) -> float:
    """Compute the floor in milliseconds.

    Forward: two products with every key in a window, and all tensors moved once. Backward: five more products, and all
    tensors and gradients moved once more.
    """
    fine, coarse = shape.fine[0] * shape.fine[1], shape.coarse[0] * shape.coarse[1]
    keys = shape.fine_window[0] * shape.fine_window[1] + shape.coarse_window[0] * shape.coarse_window[1]
    pairs = shape.samples * shape.heads * fine * keys * shape.head
    numbers = shape.samples * shape.heads * shape.head * (3 * fine + 2 * coarse)
    output = shape.samples * shape.heads * shape.head * fine
    products = 2 + 5 * backward
    moved = (numbers + output) + backward * (2 * numbers + 2 * output)
    arithmetic = 2 * pairs * products / (machine.gigaflops * 1e6)
    traffic = moved * torch.finfo(dtype).bits / 8 / (machine.gigabytes_per_second * 1e6)
    return max(arithmetic, traffic)


def decode_attention_rows(
    shape: KernelShape, device: torch.device, dtype: torch.dtype, machine: HardwareLimits, seconds: float
) -> Iterator[KernelResult]:
    """Measure one slot of every row in both channels. The floor: each key and value is read once."""
    rows, heads, head = shape.samples, shape.heads, shape.head
    channels = [
        reference.Channel(
            torch.randn(rows, heads, 1, head, device=device, dtype=dtype),
            torch.randn(2, rows, heads, 1, head, device=device, dtype=dtype),
            torch.randn(2, rows, heads, keys, head, device=device, dtype=dtype),
        )
        for keys in shape.places
    ]
    spans = torch.tensor([[[0, keys]] for keys in shape.places], dtype=torch.int32, device=device)
    numbers = 2 * rows * heads * head * sum(shape.places)
    floor = numbers * torch.finfo(dtype).bits / 8 / (machine.gigabytes_per_second * 1e6)
    calls: dict[str, Callable[[], object]] = {
        "fast": lambda: decoding.decode_attention(channels, spans),
        "plain": lambda: reference.decode_attention(channels, spans),
    }
    yield from _rows("decode attention", calls, decoding.unsupported_reason(channels), floor, device, seconds)


def int8_rows(
    shape: KernelShape, device: torch.device, dtype: torch.dtype, machine: HardwareLimits, seconds: float
) -> Iterator[KernelResult]:
    """Measure the first product of the MLP in a decoding step: with the kernel, unpacked weights and exact weights.

    The floor: the 8-bit weights are read once.
    """
    hidden = shape.heads * shape.head
    x = torch.randn(shape.samples, hidden, device=device, dtype=dtype)
    exact = torch.randn(4 * hidden, hidden, device=device, dtype=dtype)
    codes, scale = w8a16.quantize_rows(exact)
    floor = codes.numel() / (machine.gigabytes_per_second * 1e6)
    calls: dict[str, Callable[[], object]] = {
        "fast": lambda: w8a16.linear(x, codes, scale),
        "plain": lambda: reference.int8_linear(x, codes, scale),
        "16 bits" if dtype.itemsize == 2 else "32 bits": lambda: torch.nn.functional.linear(x, exact),
    }
    yield from _rows("8-bit product", calls, w8a16.unsupported_reason(x, codes), floor, device, seconds)


def sandwich_rows(
    shape: KernelShape, device: torch.device, dtype: torch.dtype, machine: HardwareLimits, seconds: float
) -> Iterator[KernelResult]:
    """Measure LayerNorm, residual sum and LayerNorm of a layer of super-resolution, which has many rows.

    The floor: two tensors are read and two written.
    """
    hidden, rows = shape.heads * shape.head, shape.samples * shape.fine[0] * shape.fine[1]
    x, out = (torch.randn(rows, hidden, device=device, dtype=dtype) for _ in range(2))
    norm = (torch.ones(hidden, device=device, dtype=dtype), torch.zeros(hidden, device=device, dtype=dtype))
    floor = 4 * x.numel() * dtype.itemsize / (machine.gigabytes_per_second * 1e6)
    calls: dict[str, Callable[[], object]] = {
        "fast": lambda: sandwich_norm.sandwich_norm(x, out, norm, norm),
        "plain": lambda: reference.sandwich_norm(x, out, norm, norm),
    }
    yield from _rows("sandwiched norms", calls, sandwich_norm.unsupported_reason(x), floor, device, seconds)


def _rows(
    operation: str,
    calls: dict[str, Callable[[], object]],
    reason: str | None,
    floor: float,
    device: torch.device,
    seconds: float,
) -> Iterator[KernelResult]:
    """Measure each form. `reason`: why the fast form is not supported, or None."""
    for form, call in calls.items():
        if form == "fast" and reason is not None:
            yield KernelResult(operation, form, None, None, floor, reason)
        else:
            yield KernelResult(operation, form, milliseconds(call, device, seconds), mebibytes(call, device), floor)


def table(shape: KernelShape, dtype: torch.dtype, machine: HardwareLimits, rows: Sequence[KernelResult]) -> str:
    """Format the rows as a text table."""
    lines = [
        f"{machine.name}: {machine.gigabytes_per_second:.0f} GB/s, {machine.gigaflops:.0f} GFLOP/s in {dtype}",
        f"{shape.samples} x {shape.heads} heads of {shape.head}: local attention {shape.coarse} -> {shape.fine} cells, "
        f"decoding {shape.places[0]} + {shape.places[1]} keys",
        f"{'operation':<34}{'form':<8}{'ms':>10}{'MiB':>10}{'floor ms':>10}{'of floor':>10}",
    ]
    for row in rows:
        line = f"{row.operation:<34}{row.form:<8}"
        if row.milliseconds is None or row.mebibytes is None or row.fraction_of_floor is None:
            lines.append(f"{line}not run: {row.note}")
        else:
            lines.append(
                f"{line}{row.milliseconds:>10.3f}{row.mebibytes:>10.1f}{row.floor_milliseconds:>10.4f}{row.fraction_of_floor:>9.1%}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
