"""Runs a recipe: makes its parts in order. Each part resumes from its last checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.training.codec_recipe import CodecRecipe, final_sizes
from cogvideo.training.joint_models import SINGLE_NETWORKS
from cogvideo.training.network_recipe import NetworkRecipe
from cogvideo.training.recipe import NETWORK_PARTS, TRAINED_PARTS, Recipe
from cogvideo.training.starting_point import StartingPoint
from cogvideo.training.training_run import TrainingRun


class RecipeRunner:
    """Makes the parts of one recipe; checkpoints go to `out`, finished files to the model's folder.

    A recipe with `data` trains each network by itself on the user's clips. Without `data` the networks learn the
    synthetic world together, from nothing or from the model that `start` names.

    Raises RequestError for a recipe that cannot be run.
    """

    def __init__(self, recipe: Recipe, out: Path) -> None:
        self.recipe = recipe
        start = StartingPoint(recipe)
        self.run = TrainingRun(recipe, out, start, final_sizes(recipe, start))
        self.codec = CodecRecipe(self.run)
        self.networks = NetworkRecipe(self.run, self.codec)
        self._steps = self._codec_steps() | self._network_steps()

    @property
    def plan(self) -> list[str]:
        """The recipe's parts in order, and the export if some of them are networks."""
        parts = list(self.recipe.parts)
        has_networks = self.recipe.own_clips or {"models", *NETWORK_PARTS} & set(parts)
        return [*parts, "export"] if has_networks else parts

    def run_part(self, part: str) -> None:
        """Make one of `RECIPE_PARTS` from the recipe's seed. Raises RequestError if the recipe lacks it."""
        if part in TRAINED_PARTS and part not in self.recipe.parts:
            raise RequestError(
                *message(
                    "recipe_runner.unknown_part",
                    part=part,
                    available_zh="、".join(self.plan),
                    available_en=", ".join(self.plan),
                )
            )
        torch.manual_seed(self.recipe.seed)
        self._steps[part]()

    def close(self) -> None:
        """End the process group, whose threads may abort a process that ends with them."""
        self.run.processes.destroy_process_group()

    def _codec_steps(self) -> dict[str, Callable[[], None]]:
        once = self.run.on_main_process
        return {
            "tokenizer": partial(once, self.codec.make_tokenizer),
            "codec": self.codec.make_codec,
            "codes": partial(once, self.codec.make_codes),
            "decoder": self.codec.make_decoder,
            "judge": self.codec.make_judge,
        }

    def _network_steps(self) -> dict[str, Callable[[], None]]:
        once = self.run.on_main_process
        steps: dict[str, Callable[[], None]] = {
            "models": self.networks.make_joint_models,
            **{part: partial(self.networks.make_network, part) for part in NETWORK_PARTS},
            "export": partial(once, self.networks.export),
            "published": partial(once, self.networks.publish),
        }
        if not self.recipe.own_clips:
            steps |= {part: partial(self.networks.make_single, part) for part in SINGLE_NETWORKS}
        return steps
