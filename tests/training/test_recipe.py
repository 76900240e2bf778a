"""Reading and checking of recipes."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from cogvideo.errors import RequestError
from cogvideo.training.decoder_task import DecoderOptions
from cogvideo.training.joint_task import JointTaskOptions
from cogvideo.training.recipe import RENAMED_OPTIONS, options_from, parse_recipe, read_recipe
from cogvideo.training.trainer import TrainerOptions

RECIPE = Path(__file__).parents[2] / "examples" / "train_mini.toml"


def test_shipped_recipe_fits_its_options() -> None:
    recipe = read_recipe(RECIPE)
    for part in ("models", "superres"):
        recipe.run_options(part, TrainerOptions)
        recipe.options(part, JointTaskOptions)
    recipe.run_options("codec", TrainerOptions)


@pytest.mark.parametrize(
    ("table", "missing"),
    [
        ({"models": {}}, "assets, clusters"),
        ({"start": "mini", "models": {}}, ""),
        ({"start": "mini", "stage1": {}}, "data"),
        ({"data": "clips", "stage1": {}}, "start"),
        ({"start": "mini"}, r"\[tokenizer\]"),
    ],
)
def test_recipe_with_missing_keys_is_refused(tmp_path: Path, table: dict[str, object], missing: str) -> None:
    path = tmp_path / "recipe.toml"
    lines = [f'{name} = "{value}"' for name, value in table.items() if isinstance(value, str)]
    path.write_text("\n".join(['preset = "mini"', "seed = 0", *lines, *(f"[{n}]" for n in table if table[n] == {})]))
    if not missing:
        assert read_recipe(path).seed == 0
        return
    with pytest.raises(RequestError, match=f"lacks: {missing}"):
        read_recipe(path)


def test_recipe_with_a_misspelt_option_is_refused() -> None:
    with pytest.raises(RequestError, match="learning_rat"):
        options_from(TrainerOptions, {"steps": 3, "learning_rat": 1e-3})


@pytest.mark.parametrize("text", ["preset = 'mini'", "not toml at all ["])
def test_unreadable_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RequestError, match="recipe"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("kind", "old", "new", "value"),
    [
        (TrainerOptions, "clip", "max_grad_norm", 0.5),
        (TrainerOptions, "average", "ema_decay", 0.9),
        (TrainerOptions, "start_share", "initial_weight_fraction", 0.3),
        (TrainerOptions, "accumulate", "gradient_accumulation_steps", 2),
        (TrainerOptions, "picture_every", "preview_every", 7),
        (JointTaskOptions, "spoilt", "corruption_rate", 0.1),
        (JointTaskOptions, "drifting", "drift_probability", 0.4),
        (DecoderOptions, "wrong", "corruption_rate", 0.1),
    ],
)
def test_option_under_its_old_name_is_read(kind: Any, old: str, new: str, value: float) -> None:
    required = {"steps": 3} if kind is TrainerOptions else {}
    options = options_from(kind, {**required, old: value})
    assert getattr(options, new) == value
    assert options == options_from(kind, {**required, new: value})


def test_every_renamed_option_is_an_option_of_some_table() -> None:
    known = {field.name for kind in (TrainerOptions, JointTaskOptions, DecoderOptions) for field in fields(kind)}
    assert set(RENAMED_OPTIONS.values()) <= known
    assert not set(RENAMED_OPTIONS) & known


def test_option_under_both_names_is_refused() -> None:
    with pytest.raises(RequestError, match=r"old names: average"):
        options_from(TrainerOptions, {"steps": 3, "average": 0.9, "ema_decay": 0.8})


@pytest.mark.parametrize("path", sorted(RECIPE.parent.glob("train_*.toml")), ids=lambda path: path.stem)
def test_shipped_recipes_use_current_names(path: Path) -> None:
    recipe = read_recipe(path)
    used = {
        name for table in recipe.parts.values() for part in table.values() if isinstance(part, dict) for name in part
    }
    assert used
    assert not used & set(RENAMED_OPTIONS)


def test_part_without_steps_is_refused() -> None:
    recipe = parse_recipe({"preset": "mini", "seed": 0, "start": "mini", "models": {}})
    with pytest.raises(RequestError, match="steps"):
        recipe.run_options("models", TrainerOptions)
