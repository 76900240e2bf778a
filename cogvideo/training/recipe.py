"""Recipes: reading a TOML file, checking it, and turning its tables into options.

A recipe has a table for each part to make, such as `[stage1.run]` and `[stage1.data]`. The files examples/train_*.toml
are recipes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from cogvideo.config import PRESETS
from cogvideo.errors import RequestError
from cogvideo.messages import message

NetworkPart = Literal["backbone", "stage1", "stage2", "superres"]
NETWORK_PARTS: Final[tuple[NetworkPart, ...]] = ("backbone", "stage1", "stage2", "superres")
"""Parts that are networks. Each one has a file `PART.safetensors` in a model's folder."""
TRAINED_PARTS: Final = ("tokenizer", "codec", "codes", "decoder", "judge", "models", *NETWORK_PARTS)
"""Parts that need a table in the recipe, in the order in which they are made."""
RECIPE_PARTS: Final = (*TRAINED_PARTS, "export", "published")

RENAMED_OPTIONS: Final = {
    "clip": "max_grad_norm",
    "average": "ema_decay",
    "start_share": "initial_weight_fraction",
    "accumulate": "gradient_accumulation_steps",
    "picture_every": "preview_every",
    "spoilt": "corruption_rate",
    "wrong": "corruption_rate",
    "drifting": "drift_probability",
}
"""Names in recipes of version 0.1 -> names of the options."""

Options = TypeVar("Options")


@dataclass(frozen=True)
class TokenizerOptions:
    """Options of `[tokenizer]`."""

    pieces: int
    """Size of the vocabulary, without image tokens."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe."""

    preset: str
    seed: int
    parts: Mapping[str, Mapping[str, Any]]
    """Tables of the parts to make, in the order of `TRAINED_PARTS`."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Sizes of the preset that the recipe changes."""
    start: str | None = None
    """`nothing`, `small`, `published`, a preset or a folder. None: the synthetic world from nothing."""
    data: str | None = None
    """Prepared folder or `file.py:Class`. None: the synthetic world."""
    assets: str | None = None
    """Folder of the finished model. None: `model` in the run's folder."""
    clusters: int = 256
    """Clusters of image tokens that sampling uses."""

    @property
    def own_clips(self) -> bool:
        """Whether the networks learn from the user's clips, not from the synthetic world."""
        return self.data is not None

    def options(self, part: str, kind: Callable[..., Options], **defaults: object) -> Options:
        """Return `[part.data]` as a dataclass. Raises RequestError for unknown names."""
        return options_from(kind, {**defaults, **self.parts[part].get("data", {})})

    def run_options(self, part: str, kind: Callable[..., Options]) -> Options:
        """Return `[part.run]` as a dataclass. Raises RequestError for unknown or missing names."""
        return options_from(kind, self.parts[part].get("run", {}))


def read_recipe(path: Path) -> Recipe:
    """Read and check a recipe. Raises RequestError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RequestError(*message("recipe.unreadable", path=path, error=error)) from error
    return parse_recipe(table, str(path))


def parse_recipe(table: Mapping[str, Any], name: str = "") -> Recipe:
    """Check the table of a recipe. `name` is the file in error messages. Raises RequestError."""
    missing = [key for key in ("preset", "seed", *_required(table)) if key not in table]
    if missing or not any(part in table for part in TRAINED_PARTS):
        missing = missing or [f"[{part}]" for part in TRAINED_PARTS]
        raise RequestError(
            *message("recipe.missing_keys", name=name, missing_zh="、".join(missing), missing_en=", ".join(missing))
        )
    if table["preset"] not in PRESETS:
        raise RequestError(
            *message(
                "recipe.unknown_preset",
                name=name,
                table=table["preset"],
                presets_zh="、".join(PRESETS),
                presets_en=", ".join(PRESETS),
            )
        )
    return Recipe(
        preset=table["preset"],
        seed=int(table["seed"]),
        parts={part: table[part] for part in TRAINED_PARTS if part in table},
        model=table.get("model", {}),
        start=str(table["start"]) if "start" in table else None,
        data=str(table["data"]) if "data" in table else None,
        assets=str(table["assets"]) if "assets" in table else None,
        clusters=int(table.get("clusters", 256)),
    )


def _required(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys that a recipe of this kind needs: the user's clips, the world with a start, the world without."""
    if any(name in table for name in ("data", "backbone", "stage1")):
        return ("data", "start")
    return () if "start" in table else ("assets", "clusters")


def options_from(kind: Callable[..., Options], table: Mapping[str, Any]) -> Options:
    """Return a table of the recipe as a dataclass. Old names of options are accepted.

    Raises RequestError for unknown, missing and repeated names.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    names = {name: _current_name(name, known) for name in table}
    _check_names(names, known)
    try:
        return kind(**{names[name]: value for name, value in table.items()})
    except TypeError as error:
        raise RequestError(*message("recipe.incomplete", error=error)) from error


def _check_names(names: Mapping[str, str], known: set[str]) -> None:
    """Check the options of a table, `names` in it -> current names. Raises RequestError."""
    unknown = sorted(name for name, current in names.items() if current not in known)
    if unknown:
        raise RequestError(
            *message(
                "recipe.unknown_options",
                unknown_zh="、".join(unknown),
                known_zh="、".join(sorted(known)),
                unknown_en=", ".join(unknown),
                known_en=", ".join(sorted(known)),
            )
        )
    repeated = sorted(name for name, current in names.items() if name != current and current in names)
    if repeated:
        raise RequestError(
            *message("recipe.old_and_new_names", repeated_zh="、".join(repeated), repeated_en=", ".join(repeated))
        )


def _current_name(name: str, known: set[str]) -> str:
    renamed = RENAMED_OPTIONS.get(name, name)
    return renamed if renamed in known else name
