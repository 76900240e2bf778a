"""One run of a recipe: its folders, its processes, and the checkpoints of its parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from torch import Tensor

from cogvideo.config import ASSETS, PRESET_FILE, PRESETS, ModelConfig, describe_preset, load_preset
from cogvideo.data.dataset import write_text
from cogvideo.errors import WeightsError
from cogvideo.messages import message
from cogvideo.training.recipe import NETWORK_PARTS, Recipe
from cogvideo.training.starting_point import StartingPoint
from cogvideo.training.trainer import Task, Trainer, TrainerOptions, export_weights

MODEL_FILES: Final = ("text.model", "codec.json", "codec.safetensors", "cluster_labels.npy")
"""Files of a model's folder beside its networks. They are copied from the starting point."""


class TrainingRun:
    """Folders, processes and checkpoints of one run: checkpoints go to `out`, finished files to `assets`.

    `sizes` are those of the finished model; `start` may have fewer image tokens.
    """

    def __init__(self, recipe: Recipe, out: Path, start: StartingPoint, sizes: ModelConfig) -> None:
        self.recipe = recipe
        self.out = out
        self.start = start
        self.sizes = sizes
        self.assets = Path(recipe.assets or out / "model")
        self.processes = PartialState()
        self.preset = PRESETS[recipe.preset]
        if recipe.start is not None:
            self.on_main_process(self._prepare_assets)
            self.preset = load_preset(str(self.assets))[0]

    def train(self, part: str, task: Task) -> None:
        """Train a part from its last checkpoint to its last step. Raises RequestError for unusable options."""
        Trainer(task, self.recipe.run_options(part, TrainerOptions), self.out / part).run()

    def on_main_process(self, work: Callable[[], None]) -> None:
        """Call `work` in the main process alone; the other processes wait."""
        if self.processes.is_main_process:
            work()
        self.processes.wait_for_everyone()

    def has_checkpoint(self, part: str) -> bool:
        """Whether the part was trained in this run."""
        return self._checkpoint(part).is_file()

    def trained_weights(self, part: str) -> dict[str, Tensor]:
        """Return the weights that the last checkpoint exports. Raises WeightsError if there is none."""
        if not self.has_checkpoint(part):
            raise self.missing_checkpoint(part)
        state: dict[str, Any] = torch.load(self._checkpoint(part), map_location="cpu", weights_only=True)
        return export_weights(state["module"], state["average"])

    def missing_checkpoint(self, part: str) -> WeightsError:
        """Return the error for a part that was not trained."""
        path = self._checkpoint(part)
        return WeightsError(*message("training_run.checkpoint_missing", path=path, part=part))

    def _checkpoint(self, part: str) -> Path:
        return self.out / part / "checkpoint.pt"

    def _prepare_assets(self) -> None:
        """Write the sizes of the model, and copy files of the starting point that are not there yet.

        A run in the synthetic world gets the networks too, unless its codebook grows.
        """
        self.assets.mkdir(parents=True, exist_ok=True)
        source = self.start.folder or ASSETS / self.recipe.preset
        is_complete = not (self.recipe.own_clips or self.start.folder is None or "codes" in self.recipe.parts)
        for name in (*MODEL_FILES, *(f"{network}.safetensors" for network in NETWORK_PARTS if is_complete)):
            if (source / name).is_file() and not (self.assets / name).is_file():
                shutil.copyfile(source / name, self.assets / f"{name}.tmp")
                (self.assets / f"{name}.tmp").replace(self.assets / name)
        write_text(self.assets / PRESET_FILE, describe_preset(self.recipe.preset, self.sizes))
