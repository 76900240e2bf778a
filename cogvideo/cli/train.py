"""`python -m cogvideo train CONFIG`: a recipe in, weights out.

Recipes: examples/train_mini.toml (the model that ships, on the synthetic world), examples/train_mini_on.toml (goes on
with it), examples/train_mini_codes.toml (the same, with more codes), examples/train_own.toml (on prepared clips),
examples/train_published.toml (the published size). A recipe has a table for every part to make; the parts are made in
the order of `PARTS`, each resumed where its last checkpoint stands, and `export` writes what is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cogvideo.cli import console
from cogvideo.training.recipe import PARTS, read_recipe
from cogvideo.training.recipe_runner import RecipeRunner


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen parts of a recipe. Raises RequestError for a recipe that cannot be read."""
    args = _parser().parse_args(arguments)
    recipe = read_recipe(args.config)
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    workshop = RecipeRunner(recipe, args.out or Path("runs", args.config.stem.removeprefix("train_")))
    for part in workshop.plan if args.part == "all" else (args.part,):
        torch.manual_seed(int(recipe["seed"]))
        workshop.run_part(part)
    workshop.processes.destroy_process_group()  # whose threads may abort a process that ends with them
    return 0


def _parser() -> console.Parser:
    parser = console.Parser(
        "train",
        description="训练模型，可随时中断并继续 / train a model; may be stopped and resumed",
        epilog="several processes: accelerate launch --num_processes 4 -m cogvideo train CONFIG",
    )
    parser.add_argument("config", type=Path, help="recipe, such as examples/train_own.toml")
    parser.add_argument("--part", choices=("all", *PARTS), default="all", help="what to make (default: all it has)")
    parser.add_argument("--out", type=Path, help="folder of checkpoints and logs (train_NAME.toml: runs/NAME)")
    parser.add_argument("--threads", type=int, default=0, help="processor threads (default: torch's choice)")
    return parser
