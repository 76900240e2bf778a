"""A recipe: reading of its file, and the options in its tables."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from cogvideo.config import (
    PRESETS,
)
from cogvideo.errors import RequestError

TRAINED = ("tokenizer", "codec", "codes", "decoder", "judge", "models", "backbone", "stage1", "stage2", "superres")
PARTS = (*TRAINED, "export", "published")
NETWORKS = ("backbone", "stage1", "stage2", "superres")

RENAMED_OPTIONS = {
    "clip": "max_grad_norm",
    "average": "ema_decay",
    "start_share": "initial_weight_fraction",
    "accumulate": "gradient_accumulation_steps",
    "picture_every": "preview_every",
    "spoilt": "corruption_rate",
    "drifting": "drift_probability",
}
"""Names in recipes of version 0.1 -> names of the options."""

Options = TypeVar("Options")


def read_recipe(path: Path) -> dict[str, Any]:
    """Read and check a recipe: a TOML table with `preset`, `seed` and a table for each part to make."""
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"无法读取训练配置 {path}：{error}。", f"Cannot read the recipe {path}: {error}.") from error
    missing = [name for name in ("preset", "seed", *_wanted(recipe)) if name not in recipe]
    if missing or not any(part in recipe for part in TRAINED):
        missing = missing or [f"[{part}]" for part in TRAINED]
        raise RequestError(
            f"训练配置 {path} 缺少：{'、'.join(missing)}。请参考 examples/train_own.toml。",
            f"The recipe {path} lacks: {', '.join(missing)}. See examples/train_own.toml.",
        )
    if recipe["preset"] not in PRESETS:
        raise RequestError(
            f"没有名为 {recipe['preset']} 的模型：可用 {'、'.join(PRESETS)}。",
            f"There is no preset {recipe['preset']}: choose from {', '.join(PRESETS)}.",
        )
    return recipe


def _wanted(recipe: dict[str, Any]) -> tuple[str, ...]:
    """What a recipe must say: of one's own clips, of the world that goes on with a model, of the world from nothing."""
    if any(name in recipe for name in ("data", "backbone", "stage1")):
        return ("data", "start")
    return () if "start" in recipe else ("assets", "clusters")


def options_from(kind: Callable[..., Options], table: dict[str, Any]) -> Options:
    """A table of the recipe as a dataclass. Raises RequestError for a name it does not have, or lacks."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    table = {_current_name(name, known): value for name, value in table.items()}
    unknown = sorted(set(table) - known)
    if unknown:
        raise RequestError(
            f"训练配置中有未知的选项 {'、'.join(unknown)}：可用 {'、'.join(sorted(known))}。",
            f"The recipe has unknown options {', '.join(unknown)}: known are {', '.join(sorted(known))}.",
        )
    try:
        return kind(**table)
    except TypeError as error:
        raise RequestError(f"训练配置不完整：{error}。", f"The recipe is incomplete: {error}.") from error


def _current_name(name: str, known: set[str]) -> str:
    renamed = RENAMED_OPTIONS.get(name, name)
    return renamed if renamed in known else name
