"""`python -m cogvideo bench`: time each stage of a video with random weights against the limits of the hardware.

Prints a table; optionally writes JSON and a plot. `--compare release` times the same stages with the 2022 release's
algorithm (our implementation) in the same run.
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

from cogvideo.benchmarks import speculation
from cogvideo.benchmarks.report import CLOCKS, as_dict, plot, run_info, table
from cogvideo.benchmarks.results import StageResult
from cogvideo.benchmarks.stages import STAGES, StageBenchmark
from cogvideo.cli import console
from cogvideo.cli.model_options import add_model_options, add_renamed
from cogvideo.config import FRAME_COUNTS, PRESETS, Preset
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.pipeline import CogVideoPipeline
from cogvideo.runtime.device import default_placement
from kernels.cpu_decode import KINDS

STREAM = Path("-")
"""Value of --json without a file name."""
PROMPTS = (
    "一只熊猫在草地上向右跑",
    "一枚火箭在夜空中向上飞",
    "一艘帆船在大海上向右行驶",
    "一只兔子在雪地里跳",
    "一辆公交车在马路上向左开",
    "一只猫头鹰在沙漠里变大",
)
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(argv: Sequence[str]) -> int:
    """Print the table and return 0. Raises RequestError, CapacityError."""
    options = parser().parse_args(argv)
    if options.lookahead:
        with console.json_output(options.json == STREAM):
            return _measure_speculation(options, argv)
    preset = _resized(PRESETS[options.preset], options)
    place = default_placement(options.device)
    place = replace(place, dtype=DTYPES[options.dtype] if options.dtype else place.dtype)
    clock = CLOCKS[options.clock]
    compare = options.compare == "release"
    bench = StageBenchmark(
        preset, place, options.frames, options.steps, compare, options.seconds, options.weights, clock
    )
    results = []
    with console.json_output(options.json == STREAM):
        for result in bench.lines(options.stages.split(",")):
            print(f"  {result.stage}: {result.seconds:.2f} s", file=sys.stderr, flush=True)
            console.event("stage", **result.as_dict())
            results.append(result)
        return _report(bench, results, options, argv)


def _report(
    bench: StageBenchmark, results: Sequence[StageResult], options: argparse.Namespace, argv: Sequence[str]
) -> int:
    if not results:
        raise RequestError(
            *message(
                "bench.unknown_stage", stages=options.stages, stages_zh="、".join(STAGES), stages_en=", ".join(STAGES)
            )
        )
    print(table(bench, results))
    _write_report(as_dict(bench, results, argv), options.json)
    if options.plot:
        options.plot.write_text(plot(bench, results), encoding="utf-8")
    return console.DONE


def _write_report(report: dict[str, Any], file: Path | None) -> None:
    console.event("result", **report)
    if file and file != STREAM:
        file.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _measure_speculation(options: argparse.Namespace, argv: Sequence[str]) -> int:
    """Measure Jacobi decoding with the preset's own weights."""
    pipeline = CogVideoPipeline.from_pretrained(options.preset, options.device)
    results = list(speculation.measure_speculation(pipeline, options.prompt or PROMPTS, options.lookahead))
    print(speculation.table(results))
    _write_report(run_info(argv) | {"lines": [result.as_dict() for result in results]}, options.json)
    return console.DONE


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def parser() -> console.Parser:
    """Return the parser of this command."""
    root = console.Parser("bench", description=__doc__)
    root.add_argument("--preset", choices=tuple(PRESETS), default="mini", help="model preset (default: mini)")
    root.add_argument("--layers", type=int, help="default: as the preset, like the sizes below")
    root.add_argument("--hidden", type=int)
    root.add_argument("--heads", type=int)
    root.add_argument("--grid", type=int, help="side of a frame in tokens; windows span half a frame")
    root.add_argument("--vocab", type=int, help="number of image tokens")
    add_model_options(root, ["device"])
    root.add_argument("--dtype", choices=tuple(DTYPES), help="default: fp16 on a GPU, fp32 on a CPU")
    root.add_argument("--frames", type=int, choices=FRAME_COUNTS, default=FRAME_COUNTS[-1])
    root.add_argument("--stages", default=",".join(STAGES), help="default: all of %(default)s")
    root.add_argument("--steps", type=int, help="steps to time per stage, spread evenly; the total is extrapolated")
    root.add_argument("--seconds", type=float, default=1.0, help="duration of each hardware measurement (default: 1)")
    root.add_argument("--compare", choices=("release",), help="time the 2022 release's algorithm too")
    root.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu: CPU seconds of this process, with one thread, for a machine that runs other work (%(default)s)",
    )
    root.add_argument("--weights", choices=KINDS, default="fp32", help="weights of the compiled CPU step (%(default)s)")
    add_renamed(
        root,
        "--lookahead",
        "--ahead",
        type=_numbers,
        metavar="1,4,8",
        help="measure Jacobi decoding instead: tokens accepted per step for each lookahead, with the preset's weights",
    )
    root.add_argument("--prompt", action="append", help="for --lookahead, may be repeated (default: six of mini)")
    root.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STREAM,
        metavar="FILE",
        help="file for all figures; without a name, events for scripts, a JSON object a line on standard output",
    )
    root.add_argument("--plot", type=Path, metavar="FILE.svg", help="plot of each stage's time and its floor")
    return root


def _resized(preset: Preset, options: argparse.Namespace) -> Preset:
    """Return the preset with the given sizes. Raises RequestError if they do not make a model."""
    model = preset.model
    side = options.grid or model.grid[0]
    image = options.vocab or model.image_tokens
    layers, hidden, heads = (getattr(options, n) or getattr(model, n) for n in ("layers", "hidden", "heads"))
    if min(side, image, layers, hidden, heads) < 1 or side % 2 or hidden % heads:
        raise RequestError(*message("bench.invalid_sizes", side=side, hidden=hidden, heads=heads))
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
