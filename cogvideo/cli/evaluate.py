"""Command `evaluate`: judges what a model generates for prompts of the synthetic world."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cogvideo.cli import console
from cogvideo.config import ASSETS, PRESETS
from cogvideo.evaluation.suite import EVALUATION_PARTS, OLD_PART_NAMES, Evaluation, EvaluationOptions, Figures
from cogvideo.request import sampling_to_dict


def main(arguments: Sequence[str] | None = None) -> int:
    """Generate, judge and print tables; write a grid and figures.json with --output."""
    args = parser().parse_args(arguments)
    from cogvideo.evaluation.sampler import EvaluationSampler

    preset = PRESETS["mini"]
    sampling = preset.sampling
    video = replace(sampling.video, temperature=args.temperature) if args.temperature else sampling.video
    sampling = replace(sampling, guidance_scale=args.guidance or sampling.guidance_scale, video=video)
    options = EvaluationOptions(args.count, args.clips, args.seed, args.output)
    evaluation = Evaluation(EvaluationSampler(preset, args.folder), sampling, options)
    figures: Figures = {}
    with console.json_output(args.json):
        for name in (name for name in EVALUATION_PARTS if name in args.parts):
            figures[name] = EVALUATION_PARTS[name](evaluation)
            console.event("figures", part=_old_name(name), evaluation=name, figures=figures[name])
        console.event("result", parts=[_old_name(name) for name in figures], evaluations=list(figures))
    if args.output:
        _write_figures(
            args.output, {"prompts": args.count, "seed": args.seed, "sampling": sampling_to_dict(sampling), **figures}
        )
    return console.DONE


def _write_figures(folder: Path, figures: Figures) -> None:
    """Write figures.json, with old names of parts beside the new ones."""
    folder.mkdir(parents=True, exist_ok=True)
    old = {name: figures[current] for name, current in OLD_PART_NAMES.items() if current in figures}
    text = json.dumps(figures | old, ensure_ascii=False, indent=1) + "\n"
    (folder / "figures.json").write_text(text, encoding="utf-8")


def _old_name(part: str) -> str:
    """Return the part's name in version 0.1: values of events do not change."""
    return next((old for old, current in OLD_PART_NAMES.items() if current == part), part)


def _part(name: str) -> str:
    """Return the current name of a part."""
    return OLD_PART_NAMES.get(name, name)


def parser() -> console.Parser:
    parser = console.Parser(
        "evaluate",
        description="检验 mini 生成的视频与提示词是否一致 / measure how often videos of mini match their prompts",
    )
    parser.add_argument("--count", type=int, default=200, help="prompts whose keyframes are judged (default: 200)")
    parser.add_argument("--clips", type=int, default=60, help="clips of each other part (default: 60)")
    names = tuple(EVALUATION_PARTS)
    parser.add_argument(
        "--parts", nargs="+", type=_part, choices=names, default=names, help="parts to evaluate (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of prompts and videos (default: 0)")
    parser.add_argument("--guidance", type=float, help="guidance scale of stage 1 (default: the preset's)")
    parser.add_argument("--temperature", type=float, help="temperature of keyframes 2 to 5 (default: the preset's)")
    parser.add_argument("--folder", type=Path, default=ASSETS / "mini", help="model folder (default: assets/mini)")
    parser.add_argument("--output", type=Path, help="folder for grid.png and figures.json")
    parser.add_argument("--out", type=Path, dest="output", help=argparse.SUPPRESS)
    console.add_json(parser)
    return parser
