"""Runs of recipes at toy size: starting points, checkpoints and exported files."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor

from cogvideo.config import ASSETS, PRESETS
from cogvideo.errors import WeightsError
from cogvideo.models.loader import NETWORKS, load_safetensors
from cogvideo.training import export
from cogvideo.training.recipe import parse_recipe, read_recipe
from cogvideo.training.recipe_runner import RecipeRunner
from cogvideo.training.trainer import Trainer
from cogvideo.training.training_run import TrainingRun
from tests.support.toy_world import OPTIONS, SMALL, needs_font, small_task

RECIPE = Path(__file__).parents[2] / "examples" / "train_mini.toml"
DATA = {"images": 1, "clips": 1, "windows": 1, "superres": 1}


@needs_font
def test_exported_weights_equal_the_trained_ones(tmp_path: Path) -> None:
    task = small_task()
    trainer = Trainer(task, OPTIONS, tmp_path / "run")
    trainer.update()
    export.export_models(dict(task.models.state_dict()), tmp_path)
    loaded = load_safetensors(tmp_path, SMALL.model)
    for part in NETWORKS:
        trained = dict(getattr(task.models, part).state_dict())
        for name, value in getattr(loaded, part).state_dict().items():
            assert torch.equal(value, trained[name].half().float()), name


@needs_font
def test_own_backbone_is_exported_and_kept_in_later_runs(tmp_path: Path) -> None:
    """The network's file has it without shared tensors, and later runs begin with it."""

    def train(start: Path | str, out: str, part: str, rate: float, **options: Any) -> Path:
        run = {"steps": 2, "learning_rate": rate, "final_learning_rate": rate, "warmup": 1, "picture_every": 0}
        recipe = {"preset": "mini", "seed": 0, "start": str(start), part: {"run": run, "data": {**DATA, **options}}}
        runner = RecipeRunner(parse_recipe(recipe), tmp_path / out)
        for name in (part, "export"):
            runner.run_part(name)
        return tmp_path / out / "model"

    def backbone(folder: Path, part: str) -> dict[str, Tensor]:
        own = load_file(folder / f"{part}.safetensors")
        return {n: t.float() for n, t in own.items() if n.startswith("transformer.")}

    free = train("mini", "free", "stage2", 1e-2, freeze_backbone=False)
    own, common = backbone(free, "stage2"), backbone(free, "backbone")
    assert {n.split(".")[1] for n in own} == {"layers", "final_layernorm"}
    assert any(float((t - common[n]).abs().max()) > 1e-3 for n, t in own.items())
    loaded = load_safetensors(free, PRESETS["mini"].model)
    assert torch.equal(
        dict(loaded.stage2.state_dict())["transformer.layers.0.mlp.dense_h_to_4h.weight"],
        own["transformer.layers.0.mlp.dense_h_to_4h.weight"],
    )

    frozen = train(free, "frozen", "stage2", 1e-2)
    again = backbone(frozen, "stage2")
    assert again.keys() == own.keys()
    assert all(torch.equal(again[n], t) for n, t in own.items())
    together = train(free, "together", "models", 1e-5)
    assert not backbone(together, "superres")
    moved = backbone(together, "stage2")
    assert moved.keys() == own.keys()  # embeddings stay shared
    nearer = [(moved[n] - t).abs().mean() < (common[n] - t).abs().mean() for n, t in own.items() if t.ndim == 2]
    assert all(nearer)  # training began with its own layers


@needs_font
def test_single_network_starts_from_the_averaged_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The averages are exported; the weights of the last step are not."""
    run = {"steps": 3, "learning_rate": 1e-2, "warmup": 1, "average": 0.9, "picture_every": 0}
    recipe = {"preset": "mini", "seed": 0, "start": "mini"}
    recipe |= {name: {"run": run, "data": DATA} for name in ("models", "superres")}
    runner = RecipeRunner(parse_recipe(recipe), tmp_path)
    runner.run_part("models")
    seen: list[dict[str, Tensor]] = []

    def record(run: TrainingRun, part: str, task: Any) -> None:
        models = task.world.models
        assert models.superres.transformer is models.stage1.transformer
        seen.append(copy.deepcopy(dict(models.stage1.state_dict())))

    monkeypatch.setattr(TrainingRun, "train", record)
    with pytest.raises(WeightsError, match="--part superres"):  # nothing was trained
        runner.run_part("superres")
    state = torch.load(tmp_path / "models" / "checkpoint.pt", weights_only=True)
    for name, value in seen[0].items():
        assert torch.equal(value, state["average"][f"stage1.{name}"]), name


@needs_font
def test_superres_training_changes_only_its_own_file(tmp_path: Path) -> None:
    """A later export of all networks keeps it."""
    shutil.copytree(ASSETS / "mini", tmp_path / "mini")
    run = {"steps": 1, "learning_rate": 1e-3, "warmup": 1, "picture_every": 0}
    recipe = {
        "preset": "mini",
        "seed": 0,
        "assets": str(tmp_path / "mini"),
        "clusters": 256,
        "superres": {"run": run, "data": {"superres": 1}},
    }
    before = {path.name: path.read_bytes() for path in (tmp_path / "mini").iterdir()}
    runner = RecipeRunner(parse_recipe(recipe), tmp_path / "run")
    runner.run_part("superres")
    after = {path.name: path.read_bytes() for path in (tmp_path / "mini").iterdir()}
    assert {name for name in before | after if before.get(name) != after.get(name)} == {"superres.safetensors"}
    trained = load(after["superres.safetensors"])
    old = load(before["superres.safetensors"])
    assert trained.keys() == old.keys()
    assert (
        max(float((trained[n].float() - old[n].float()).abs().max()) for n in old) < 0.1
    )  # training began with the shipped weights
    together = Trainer(small_task(), OPTIONS, tmp_path / "run" / "models")
    together.save()
    runner.run_part("export")
    assert (tmp_path / "mini" / "superres.safetensors").read_bytes() == after["superres.safetensors"]


@needs_font
@pytest.mark.parametrize("part", ["models", "stage2", "superres"])
def test_run_from_mini_begins_with_its_weights(tmp_path: Path, part: str) -> None:
    """The run's own folder gets all files of a model."""
    run = {"steps": 1, "learning_rate": 1e-6, "muon_learning_rate": 1e-6, "warmup": 1, "picture_every": 0}
    recipe = {"preset": "mini", "seed": 0, "start": "mini", part: {"run": run, "data": DATA}}
    runner = RecipeRunner(parse_recipe(recipe), tmp_path)
    runner.run_part(part)
    runner.run_part("export")
    names = ("backbone", "stage1", "stage2", "superres") if part == "models" else (part,)
    for name in names:
        start, trained = (load_file(folder / f"{name}.safetensors") for folder in (ASSETS / "mini", tmp_path / "model"))
        for key, value in trained.items():
            torch.testing.assert_close(value, start[key], rtol=1e-2, atol=1e-3)
    assert {"text.model", "codec.json", "codec.safetensors", "cluster_labels.npy", "preset.json"} <= {
        path.name for path in (tmp_path / "model").iterdir()
    }
    assert load_safetensors(tmp_path / "model", PRESETS["mini"].model).sizes.own_parts["superres"] == []


def test_export_without_checkpoint_names_the_missing_part(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="--part models"):
        RecipeRunner(read_recipe(RECIPE), tmp_path).run_part("export")
