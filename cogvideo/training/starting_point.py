"""The starting point of a recipe: the folder, sizes and weights that training begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from torch import Tensor

from cogvideo.config import PRESET_FILE, PRESETS, ModelConfig, load_preset, resize_model
from cogvideo.models.loader import BACKBONE
from cogvideo.training.recipe import NetworkPart, Recipe
from cogvideo.weights import checkpoint, published_format
from cogvideo.weights.catalog import published_home

Tensors = dict[str, Tensor]

SMALL: Final = "small"
"""Structured starting values for a small model, computed by `init_structured`."""
NOTHING: Final = "nothing"
MIXINS: Final = "mixins."
"""Prefix of the weights that a network has beside the backbone's."""


class StartingPoint:
    """What `start` of a recipe names. Raises RequestError if there is no such model."""

    def __init__(self, recipe: Recipe) -> None:
        self.name = recipe.start
        self.folder = _find_folder(recipe.start)
        """Folder of the starting weights; None for "nothing" and "small"."""
        self.sizes: ModelConfig = resize_model(self._known_sizes() or PRESETS[recipe.preset].model, dict(recipe.model))

    @property
    def is_small(self) -> bool:
        """Whether structured starting values take the place of a folder."""
        return self.name == SMALL

    @property
    def is_published(self) -> bool:
        """Whether the folder holds checkpoints in the published format."""
        return self.folder is not None and _is_published(self.folder)

    def _known_sizes(self) -> ModelConfig | None:
        """Return the sizes that the folder describes. Returns None without a description."""
        if self.folder is None or not (self.folder / PRESET_FILE).is_file():
            return None
        return load_preset(str(self.folder))[0].model

    def read(self, part: NetworkPart) -> Tensors | None:
        """Read a network's weights: `transformer.*` of the backbone, `mixins.*` and own layers of the others.

        Returns None if the starting point has no such network. Raises WeightsError for damaged files.
        """
        if self.folder is None:
            return None
        if self.is_published:
            return _read_published(self.folder, part)
        path = self.folder / f"{part}.safetensors"
        return checkpoint.read_safetensors(path) if path.is_file() else None


def _find_folder(start: str | None) -> Path | None:
    if start in (None, NOTHING, SMALL):
        return None
    if start == "published":
        return published_home()
    return Path(start) if _is_published(Path(start)) else load_preset(start)[1]


def _is_published(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in published_format.PUBLISHED.values())


def _read_published(folder: Path, part: NetworkPart) -> Tensors | None:
    """Read a network of the published format; every published file has the backbone too."""
    folders = [folder / name for network, name in published_format.PUBLISHED.items() if part in (network, "backbone")]
    found = next((path for path in folders if path.is_dir()), None)
    if found is None:
        return None
    prefix = BACKBONE if part == "backbone" else MIXINS
    tensors = published_format.read_published(found)
    return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)} or None
