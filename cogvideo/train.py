"""`python -m cogvideo train CONFIG`: a recipe in, weights out. The recipe of `mini` is examples/train_mini.toml.

The parts are made in this order, each resumed where its last checkpoint stands: tokenizer, codec, models; `export`
writes what ships.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from cogvideo.config import ASSETS, PRESETS, Preset
from cogvideo.errors import RequestError, WeightsError

PARTS = ("tokenizer", "codec", "models", "export")
Options = TypeVar("Options")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen parts of a recipe. Raises RequestError for a recipe that cannot be read."""
    args = _parser().parse_args(arguments)
    recipe = read_recipe(args.config)
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(int(recipe["seed"]))
    workshop = Workshop(recipe, args.out)
    for part in PARTS if args.part == "all" else (args.part,):
        getattr(workshop, f"make_{part}")()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogvideo train",
        description="训练模型，可随时中断并继续 / train a model; may be stopped and resumed",
    )
    parser.add_argument("config", type=Path, help="recipe, such as examples/train_mini.toml")
    parser.add_argument("--part", choices=("all", *PARTS), default="all", help="what to make (default: all, in order)")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="folder of checkpoints and logs")
    parser.add_argument("--threads", type=int, default=0, help="processor threads (default: torch's choice)")
    return parser


def read_recipe(path: Path) -> dict[str, Any]:
    """Read and check a recipe: a TOML table with `preset`, `seed`, `assets` and a table for each part."""
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"无法读取训练配置 {path}：{error}。", f"Cannot read the recipe {path}: {error}.") from error
    missing = [name for name in ("preset", "seed", "assets", "tokenizer", "codec", "models") if name not in recipe]
    if missing:
        raise RequestError(
            f"训练配置 {path} 缺少：{'、'.join(missing)}。请参考 examples/train_mini.toml。",
            f"The recipe {path} lacks: {', '.join(missing)}. See examples/train_mini.toml.",
        )
    if recipe["preset"] not in PRESETS:
        raise RequestError(
            f"没有名为 {recipe['preset']} 的模型：可用 {'、'.join(PRESETS)}。",
            f"There is no preset {recipe['preset']}: choose from {', '.join(PRESETS)}.",
        )
    return recipe


def options_from(kind: Callable[..., Options], table: dict[str, Any]) -> Options:
    """A table of the recipe as a dataclass. Raises RequestError for a name it does not have."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - known)
    if unknown:
        raise RequestError(
            f"训练配置中有未知的选项 {'、'.join(unknown)}：可用 {'、'.join(sorted(known))}。",
            f"The recipe has unknown options {', '.join(unknown)}: known are {', '.join(sorted(known))}.",
        )
    return kind(**table)


class Workshop:
    """Makes the parts of one recipe; checkpoints go to `out`, finished files to the recipe's `assets` folder."""

    def __init__(self, recipe: dict[str, Any], out: Path) -> None:
        self.recipe = recipe
        self.out = out
        self.assets = ASSETS.parent / recipe["assets"]
        self.preset: Preset = PRESETS[recipe["preset"]]
        self.seed = int(recipe["seed"])

    def make_tokenizer(self) -> None:
        """Words of the world -> `text.model`, and what the world holds -> `world.json`, `held_out.json`."""
        from cogvideo.training.tokenizer import train_tokenizer
        from cogvideo.training.world import describe_held_out, describe_world

        train_tokenizer(self.assets / "text.model", **self.recipe["tokenizer"])
        for name, content in (("world", describe_world()), ("held_out", describe_held_out())):
            text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
            (self.assets / f"{name}.json").write_text(text, encoding="utf-8")

    def make_codec(self) -> None:
        """World frames -> the VQ-VAE."""
        from cogvideo.frames import build_codec
        from cogvideo.training.codec import CodecOptions, CodecTask
        from cogvideo.training.run import RunOptions, Trainer
        from cogvideo.training.world import draw_held_out

        table = self.recipe["codec"]
        codec = build_codec(self.assets / "codec.json")
        task = CodecTask(codec, draw_held_out(), options_from(CodecOptions, table.get("data", {})), self.seed)
        Trainer(task, options_from(RunOptions, table["run"]), self.out / "codec").run()

    def make_models(self) -> None:
        """Clips of the world -> backbone, stage 1, stage 2 and super-resolution, together."""
        from cogvideo.text import TextTokenizer
        from cogvideo.training.codec import tokenise
        from cogvideo.training.initial import start_small
        from cogvideo.training.objective import ObjectiveOptions, WorldModels, WorldTask
        from cogvideo.training.run import RunOptions, Trainer
        from cogvideo.training.world import draw_held_out

        table = self.recipe["models"]
        codec = self._trained_codec()
        models = WorldModels(self.preset)
        start_small(models)
        task = WorldTask(
            models,
            self.preset,
            TextTokenizer(self.assets / "text.model", self.preset.model.image_tokens),
            lambda pixels: tokenise(codec, pixels),
            draw_held_out(),
            options_from(ObjectiveOptions, {"seed": self.seed, **table.get("data", {})}),
        )
        Trainer(task, options_from(RunOptions, table["run"]), self.out / "models").run()

    def make_export(self) -> None:
        """The last checkpoints -> the files that ship."""
        from cogvideo.training.export import export_clusters, export_codec, export_models

        codec = self._checkpoint("codec")["module"]
        export_codec(codec, self.assets)
        export_clusters(codec["quantize.embed.weight"], int(self.recipe["clusters"]), self.assets)
        state = self._checkpoint("models")
        export_models({**state["module"], **state["average"]}, self.assets)

    def _trained_codec(self) -> Any:
        from cogvideo.frames import build_codec

        codec = build_codec(self.assets / "codec.json")
        codec.load_state_dict(self._checkpoint("codec")["module"])
        return codec.eval().requires_grad_(False)

    def _checkpoint(self, part: str) -> dict[str, Any]:
        import torch

        path = self.out / part / "checkpoint.pt"
        if not path.is_file():
            raise WeightsError(
                f"找不到检查点 {path}：请先运行 --part {part}。",
                f"The checkpoint {path} is missing: run --part {part} first.",
            )
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
