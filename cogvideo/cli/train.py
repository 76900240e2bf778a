"""Command `train`: trains the parts of a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from cogvideo.cli import console
from cogvideo.training.recipe import RECIPE_PARTS, read_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the chosen parts of a recipe. Raises RequestError for a recipe that cannot be used."""
    args = parser().parse_args(arguments)
    recipe = read_recipe(args.config)
    import torch

    from cogvideo.training.recipe_runner import RecipeRunner

    if args.threads:
        torch.set_num_threads(args.threads)
    runner = RecipeRunner(recipe, args.output or Path("runs", args.config.stem.removeprefix("train_")))
    for part in runner.plan if args.part == "all" else (args.part,):
        runner.run_part(part)
    runner.close()
    return 0


def parser() -> console.Parser:
    parser = console.Parser(
        "train",
        description="训练模型，可随时中断并继续 / train a model; can be interrupted and resumed",
        epilog="several processes: accelerate launch --num_processes 4 -m cogvideo train CONFIG",
    )
    parser.add_argument("config", type=Path, help="recipe, such as examples/train_own.toml")
    parser.add_argument(
        "--part", choices=("all", *RECIPE_PARTS), default="all", help="part to make (default: all in the recipe)"
    )
    parser.add_argument("--output", type=Path, help="folder of checkpoints and logs (train_NAME.toml: runs/NAME)")
    parser.add_argument("--out", type=Path, dest="output", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: chosen by torch)")
    return parser
