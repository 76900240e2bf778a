"""Conversion of the published checkpoints to safetensors files with one shared backbone.

Tensors are copied from the mapped file to the new one, layer by layer. The folder appears complete or not at all.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cogvideo.config import PRESET_FILE, ModelConfig, describe_preset
from cogvideo.errors import CapacityError, RequestError
from cogvideo.messages import message
from cogvideo.models.loader import BACKBONE, NETWORKS, LoadedSizes, Network, expected
from cogvideo.units import format_bytes
from cogvideo.weights import checkpoint, published_format
from cogvideo.weights.catalog import checkpoint_folder


def convert(directory: Path, out: Path) -> LoadedSizes:
    """Convert the checkpoints in `directory` to the new folder `out`.

    Raises RequestError, WeightsError, CapacityError. After an error `out` does not exist.
    """
    config = published_format.published_config(directory)
    networks = {part: _read(directory, config, part) for part in NETWORKS}
    files, own = _share(networks)
    before = sum(_bytes(tensors) for tensors in networks.values())
    after = sum(_bytes(tensors) for tensors in files.values())
    with _new_folder(out) as folder:
        _require_space(folder, after)
        for name, tensors in files.items():
            checkpoint.write_safetensors(folder / f"{name}.safetensors", tensors)
        (folder / PRESET_FILE).write_text(describe_preset("cogvideo", config), encoding="utf-8")
    return LoadedSizes(before, after, own)


def _read(directory: Path, config: ModelConfig, part: Network) -> checkpoint.Tensors:
    """Map the tensors of a network from its file. Raises WeightsError."""
    folder = checkpoint_folder(directory, published_format.PUBLISHED[part])
    path, tensors = published_format.checkpoint_file(folder), published_format.read_published(folder)
    required = expected(config, part)
    checkpoint.check(path, tensors, required)
    return type(tensors)({name: tensors[name] for name in required})


def _share(
    networks: Mapping[Network, checkpoint.Tensors],
) -> tuple[dict[str, checkpoint.Tensors], dict[Network, list[str]]]:
    """Return the content of each file, and for each network the tensors that differ from the common backbone.

    The common backbone is the first network's.
    """
    first = next(iter(networks.values()))
    files = {"backbone": {name: tensor for name, tensor in first.items() if name.startswith(BACKBONE)}}
    own: dict[Network, list[str]] = {}
    for part, tensors in networks.items():
        own[part] = [
            n for n in files["backbone"] if tensors is not first and not checkpoint.tensors_equal(tensors, first, n)
        ]
        files[part] = {n: t for n, t in tensors.items() if not n.startswith(BACKBONE) or n in own[part]}
    return files, own


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """Create a folder beside `out`. It is renamed to `out` if the block succeeds, and deleted otherwise.

    Raises RequestError if `out` exists.
    """
    from filelock import FileLock

    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(out.name + ".lock")):
        if out.exists():
            raise RequestError(*message("convert.already_exists", out=out))
        folder = out.with_name(out.name + ".part")
        if folder.exists():  # of a process that was killed
            shutil.rmtree(folder)
        folder.mkdir()
        try:
            yield folder
            folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CapacityError(
            *message("convert.disk_full", parent=folder.parent, free=format_bytes(free), required=format_bytes(needed))
        )


def _bytes(tensors: checkpoint.Tensors) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
