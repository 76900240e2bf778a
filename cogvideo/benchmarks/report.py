"""Results of a benchmark as a table, as JSON and as a chart."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cogvideo.benchmarks.results import StageResult
from cogvideo.benchmarks.stages import StageBenchmark
from cogvideo.benchmarks.svg_chart import stage_bars
from cogvideo.runtime.device import usable_cores

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def run_info(argv: Sequence[str]) -> dict[str, Any]:
    """Return command, date and software of this run."""
    return {
        "command": " ".join(["python -m cogvideo bench", *argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """Return the CPU's name and the number of cores that this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {usable_cores()} cores"


def heading(bench: StageBenchmark) -> str:
    """Return sizes and device in one line."""
    c = bench.config
    return (
        f"{bench.preset.name}: {c.layers} layers x {c.hidden}, {c.heads} heads, {c.grid[0]} x {c.grid[1]} tokens, "
        f"{bench.frames} frames, {str(bench.place.dtype).removeprefix('torch.')} on {bench.place.device}"
    )


def table(bench: StageBenchmark, lines: Sequence[StageResult]) -> str:
    """Return the results as text; `~` marks extrapolated times."""
    rows = [f"{heading(bench)}; a step: {bench.form}"]
    for machine in bench.machines.values():
        rows.append(
            f"{machine.name}, {machine.threads} threads: {machine.gigabytes_per_second:.1f} GB/s, "
            f"{machine.gigaflops:.0f} GFLOP/s"
        )
    head = f"{'stage':<14}{'rows':>5}{'steps':>7}{'seconds':>10}{'ms/step':>9}{'tokens/s':>10}"
    head += f"{'floor s':>9}{'of floor':>9}{'calls':>7}{'syncs':>6}{'MiB':>8}"
    rows.append(head + (f"{'release s':>11}{'ratio':>7}" if bench.compare else ""))
    for line in lines:
        mark = "~" if line.measured_steps < line.steps else ""
        row = f"{line.stage:<14}{line.rows:>5}{line.steps:>7}{mark + f'{line.seconds:.2f}':>10}"
        row += f"{line.milliseconds_per_step:>9.2f}{line.tokens / line.seconds:>10.0f}{line.floor_seconds:>9.2f}"
        row += f"{line.fraction_of_floor:>8.0%} {line.calls_per_step:>7}{line.syncs_per_step:>6}"
        row += f"{line.peak_mebibytes:>8.0f}"
        if line.release_seconds is not None and line.times_release is not None:
            row += f"{'~' + f'{line.release_seconds:.1f}':>11}{line.times_release:>6.1f}x"
        rows.append(row)
    seconds, floor = sum(line.seconds for line in lines), sum(line.floor_seconds for line in lines)
    steps = sum(line.steps for line in lines)
    rows.append(f"{'all':<19}{steps:>7}{seconds:>10.2f}{'':>19}{floor:>9.2f}{floor / seconds:>8.0%}")
    if bench.compare:
        rows.append(compared(lines))
    return "\n".join(rows)


def compared(lines: Sequence[StageResult]) -> str:
    """Return the ratio of both algorithms over the stages that were timed with both."""
    both = [line for line in lines if line.release_seconds is not None]
    release, ours = sum(line.release_seconds or 0.0 for line in both), sum(line.seconds for line in both)
    if not both:
        return "no stage was timed with the release's algorithm"
    timed = min((line.release_measured_steps or 0) for line in both)
    cpu = sum(line.release_cpu_seconds or 0.0 for line in both) / sum(line.cpu_seconds for line in both)
    return (
        f"ours {ours:.1f} s, the 2022 release's algorithm {release:.1f} s: {release / ours:.1f} times longer, "
        f"{cpu:.1f} times in CPU time (from at least {timed} timed steps a stage)"
    )


def as_dict(bench: StageBenchmark, lines: Sequence[StageResult], argv: Sequence[str]) -> dict[str, Any]:
    """Return all results, for JSON."""
    both = [line for line in lines if line.release_seconds is not None]
    ratio = sum(line.release_seconds or 0 for line in both) / sum(line.seconds for line in both) if both else None
    cpu = sum(line.release_cpu_seconds or 0 for line in both) / sum(line.cpu_seconds for line in both) if both else None
    return run_info(argv) | {
        "step": bench.form,
        "clock": next(name for name, clock in CLOCKS.items() if clock is bench.clock),
        "model": asdict(bench.config),
        "frames": bench.frames,
        "device": str(bench.place.device),
        "dtype": str(bench.place.dtype).removeprefix("torch."),
        "machines": [asdict(machine) for machine in bench.machines.values()],
        "stages": [line.as_dict() for line in lines],
        "seconds": sum(line.seconds for line in lines),
        "floor_seconds": sum(line.floor_seconds for line in lines),
        "cpu_seconds": sum(line.cpu_seconds for line in lines),
        "times_release": ratio,
        "times_release_cpu": cpu,
    }


def plot(bench: StageBenchmark, lines: Sequence[StageResult]) -> str:
    """Return an SVG with a bar for each stage, dark up to its floor."""
    bars = [(line.stage, line.seconds, line.floor_seconds, line.release_seconds) for line in lines]
    machine = bench.machines[max(bench.machines)]
    cores = f", {machine.threads} threads" if machine.name == "CPU" else ""
    note = f"{machine.name}{cores}: {machine.gigabytes_per_second:.0f} GB/s, {machine.gigaflops:.0f} GFLOP/s"
    return stage_bars(heading(bench), note, bars)
