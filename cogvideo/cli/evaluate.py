"""`python -m cogvideo evaluate`: judge the videos of `mini`; print tables, write a grid and figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cogvideo.cli import console
from cogvideo.config import ASSETS, PRESETS
from cogvideo.evaluation.suite import PARTS, Evaluation, Figures
from cogvideo.request import sampling_to_dict


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, judge, print tables; write a grid and the figures where asked."""
    args = _parser().parse_args(arguments)
    from cogvideo.evaluation.sampler import EvaluationSampler

    preset = PRESETS["mini"]
    options = preset.sampling
    video = replace(options.video, temperature=args.temperature) if args.temperature else options.video
    options = replace(options, guidance_scale=args.guidance or options.guidance_scale, video=video)
    evaluation = Evaluation(EvaluationSampler(preset, args.folder), options, args)
    figures: Figures = {}
    with console.json_output(args.json):
        for name in (name for name in PARTS if name in args.parts):
            figures[name] = PARTS[name](evaluation)
            console.event("figures", part=name, figures=figures[name])
        console.event("done", parts=list(figures))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        content = {"prompts": args.count, "seed": args.seed, "sampling": sampling_to_dict(options), **figures}
        path = args.out / "figures.json"
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return console.DONE


def _parser() -> console.Parser:
    parser = console.Parser(
        "evaluate",
        description="让评委检验 mini 画得对不对 / let the judge say how often mini draws what the prompt says",
    )
    parser.add_argument("--count", type=int, default=200, help="prompts whose keyframes are judged (default: 200)")
    parser.add_argument("--clips", type=int, default=60, help="clips of each of the other parts (default: 60)")
    parser.add_argument(
        "--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), help="what to look at (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts and of the draws (default: 0)")
    parser.add_argument("--guidance", type=float, help="guidance of stage 1 (default: the preset's)")
    parser.add_argument("--temperature", type=float, help="temperature of keyframes 2 to 5 (default: the preset's)")
    parser.add_argument("--folder", type=Path, default=ASSETS / "mini", help="the model (default: assets/mini)")
    parser.add_argument("--out", type=Path, help="folder for grid.png and figures.json")
    console.add_json(parser)
    return parser
