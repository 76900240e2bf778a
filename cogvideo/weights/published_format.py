"""Checkpoints in the format of the 2022 release: reading of their tensors and their configuration.

A folder for each network has `latest`, `model_config.json` and `<iteration>/mp_rank_00_model_states.pt`.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.weights.catalog import checkpoint_folder
from cogvideo.weights.checkpoint import MappedTensors, Tensors, damaged, require

PUBLISHED = {"stage1": "cogvideo-stage1", "stage2": "cogvideo-stage2", "superres": "cogview2-dsr"}
"""Folder of each network in the published format."""

PUBLISHED_IMAGE_TOKENS = 20000
PUBLISHED_IMAGE_START = 512
PUBLISHED_VOCABULARY = 150010
PUBLISHED_START_OF_IMAGE = 150000

SPECIAL_TOKENS = 3
"""Number of special tokens, `<start_of_image>` first, at the end of any other vocabulary."""


def read_published(folder: Path) -> Tensors:
    """Return the tensors of one network in the published format, mapped from the file. Raises WeightsError."""
    path = checkpoint_file(folder)
    try:
        mapped = zipfile.is_zipfile(path)  # files of torch before 1.6 are pickles and cannot be mapped
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise damaged(path, error) from error
    tensors = loaded.get("module") if isinstance(loaded, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise damaged(path, "no tensors under the key 'module'")
    return MappedTensors(tensors) if mapped else tensors


def checkpoint_file(folder: Path) -> Path:
    """Return the file that `latest` names, or the only one. Raises WeightsError if there is none."""
    latest = folder / "latest"
    name = "mp_rank_00_model_states.pt"
    if latest.is_file():
        path = folder / latest.read_text(encoding="utf-8", errors="replace").strip() / name
        require(path)
        return path
    found = sorted(folder.glob(f"*/{name}"))
    if len(found) != 1:
        require(latest)
    return found[0]


def published_config(directory: Path) -> ModelConfig:
    """Return the sizes of the networks in `directory`, read from their `model_config.json`. Raises WeightsError."""
    stage1, stage2, superres = (
        _read_json(checkpoint_folder(directory, name) / "model_config.json") for name in PUBLISHED.values()
    )
    try:
        text, first, end = _numbers(stage1["layout"])
        superres_text, coarse_end, fine_end = _numbers(superres["layout"])
        tokens = first - text
        side, upscale = round(tokens**0.5), round(((fine_end - coarse_end) / tokens) ** 0.5)
        vocabulary = stage1["vocab_size"]
        return ModelConfig(
            layers=stage1["num_layers"],
            hidden=stage1["hidden_size"],
            heads=stage1["num_attention_heads"],
            vocab_size=vocabulary,
            image_tokens=PUBLISHED_IMAGE_TOKENS,
            start_of_image=(
                PUBLISHED_START_OF_IMAGE if vocabulary == PUBLISHED_VOCABULARY else vocabulary - SPECIAL_TOKENS
            ),
            grid=(side, side),
            keyframes=(end - text) // tokens,
            text_length=text,
            image_start=PUBLISHED_IMAGE_START,
            base_positions=stage1["max_sequence_length"],
            extra_positions=stage1["additional_seqlen"],
            window=stage2["window_size"],
            upscale=upscale,
            superres_text_length=superres_text,
            fine_window=(2 * superres["kernel_size"] - 1, superres["kernel_size"]),
            coarse_window=(superres["kernel_size2"], superres["kernel_size2"]),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise damaged(directory / PUBLISHED["stage1"] / "model_config.json", f"{error!r}") from error


def _read_json(path: Path) -> dict[str, Any]:
    require(path)
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, error) from error
    if not isinstance(read, dict):
        raise damaged(path, "not a JSON object")
    return read


def _numbers(layout: str) -> tuple[int, int, int]:
    """Parse "64, 464, 2064", the ends of text, first frame and sequence."""
    text, first, end = (int(part) for part in layout.split(","))
    return text, first, end
