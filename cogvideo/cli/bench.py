"""`python -m cogvideo bench`: how long each stage of a video takes with random weights, beside the machine's limits.

In: sizes, a device, a precision. Out: a table, JSON and a plot. `--compare release` measures the release's structure,
written by us for comparison, in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cogvideo.benchmarks.report import CLOCKS, _origin, described, plot, table
from cogvideo.benchmarks.results import StageResult
from cogvideo.benchmarks.speculation import measure_speculation
from cogvideo.benchmarks.speculation import table as kept_table
from cogvideo.benchmarks.stages import STAGES, StageBenchmark
from cogvideo.cli import console
from cogvideo.config import FRAME_COUNTS, PRESETS, Preset
from cogvideo.errors import RequestError
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.runtime.device import default_placement
from kernels.cpu_decode import KINDS

STREAM = Path("-")
"""Where --json names no file."""
PROMPTS = (
    "一只熊猫在草地上向右跑",
    "一枚火箭在夜空中向上飞",
    "一艘帆船在大海上向右行驶",
    "一只兔子在雪地里跳",
    "一辆公交车在马路上向左开",
    "一只猫头鹰在沙漠里变大",
)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(arguments: Sequence[str]) -> int:
    """Prints the table; 0. Raises RequestError, CapacityError."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.ahead:
        with console.json_output(options.json == STREAM):
            return _look_ahead(options, arguments)
    preset = _sized(PRESETS[options.preset], options)
    place = default_placement(options.device)
    place = replace(place, dtype=DTYPES[options.dtype] if options.dtype else place.dtype)
    clock = CLOCKS[options.clock]
    compared = options.compare == "release"
    bench = StageBenchmark(
        preset, place, options.frames, options.steps, compared, options.seconds, options.weights, clock
    )
    lines = []
    with console.json_output(options.json == STREAM):
        for line in bench.lines(options.stages.split(",")):
            print(f"  {line.stage}: {line.seconds:.2f} s", file=sys.stderr, flush=True)
            console.event("stage", **line.as_dict())
            lines.append(line)
        return _report(bench, lines, options, arguments)


def _report(
    bench: StageBenchmark, lines: Sequence[StageResult], options: argparse.Namespace, arguments: Sequence[str]
) -> int:
    if not lines:
        raise RequestError(
            f"没有名为 {options.stages} 的阶段：可用 {'、'.join(STAGES)}。",
            f"There is no stage {options.stages}: there are {', '.join(STAGES)}.",
        )
    print(table(bench, lines))
    _tell(described(bench, lines, arguments), options.json)
    if options.plot:
        options.plot.write_text(plot(bench, lines), encoding="utf-8")
    return 0


def _tell(report: dict[str, Any], file: Path | None) -> None:
    console.event("done", **report)
    if file and file != STREAM:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _look_ahead(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """With the preset's own weights."""
    pipeline = CogVideoPipeline.from_pretrained(options.preset, options.device)
    lines = list(measure_speculation(pipeline, options.prompt or PROMPTS, options.ahead))
    print(kept_table(lines))
    _tell(_origin(arguments) | {"lines": [line.as_dict() for line in lines]}, options.json)
    return 0


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> console.Parser:
    parser = console.Parser("bench", description=__doc__)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="mini", help="sizes to start from (default: mini)")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--grid", type=int, help="side of a frame in tokens; windows of half a frame")
    parser.add_argument("--vocab", type=int, help="image tokens")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: the best there is)")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: fp16 on a GPU, fp32 on a CPU")
    parser.add_argument("--frames", type=int, choices=FRAME_COUNTS, default=FRAME_COUNTS[-1])
    parser.add_argument("--stages", default=",".join(STAGES), help="default: all of %(default)s")
    parser.add_argument("--steps", type=int, help="time at most so many steps a stage, spread evenly, and extrapolate")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each ceiling of the machine (default: 1)")
    parser.add_argument("--compare", choices=("release",), help="measure the release's structure beside ours")
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu: seconds that this process computed, with one thread, for a machine that is busy with other things",
    )
    parser.add_argument("--weights", choices=KINDS, default="fp32", help="of the compiled step on a CPU (%(default)s)")
    parser.add_argument(
        "--ahead",
        type=_numbers,
        metavar="1,4,8",
        help="instead: tokens that steps keep which look so many slots ahead, with the preset's own weights",
    )
    parser.add_argument("--prompt", action="append", help="for --ahead, may be repeated (default: six of mini's world)")
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STREAM,
        metavar="FILE",
        help="all figures into a file; without a name events for scripts, a JSON object a line on standard output",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="time of each stage against its floor")
    return parser


def _sized(preset: Preset, options: argparse.Namespace) -> Preset:
    """The preset with the sizes that were asked for. Raises RequestError for sizes that make no model."""
    model = preset.model
    side = options.grid or model.grid[0]
    image = options.vocab or model.image_tokens
    layers, hidden, heads = (getattr(options, n) or getattr(model, n) for n in ("layers", "hidden", "heads"))
    if min(side, image, layers, hidden, heads) < 1 or side % 2 or hidden % heads:
        raise RequestError(
            f"尺寸不成立：网格 {side} 须为偶数，宽度 {hidden} 须能被头数 {heads} 整除，各数至少为 1。",
            f"These sizes make no model: the grid {side} must be even, hidden {hidden} divisible by heads {heads}, all "
            "at least 1.",
        )
    start = model.image_start
    resized = replace(
        model,
        layers=layers,
        hidden=hidden,
        heads=heads,
        grid=(side, side),
        window=side // 2,
        image_tokens=image,
        vocab_size=image + model.vocab_size - model.image_tokens,
        start_of_image=image + model.start_of_image - model.image_tokens,
        base_positions=max(model.base_positions, start + side * side + 2),
        extra_positions=max(model.extra_positions, (model.keyframes - 1) * side * side),
    )
    return replace(preset, model=resized)
