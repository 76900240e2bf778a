"""Catalog of the published model's files: names, sizes, addresses and local paths.

Any address may be gone or return something else, so `cogvideo.weights.download` verifies every file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cogvideo.messages import message

Format = Literal["zip", "torch", "sentencepiece", "npy"]

MAGIC: Final[dict[Format, tuple[bytes, ...]]] = {
    "zip": (b"PK\x03\x04",),
    "torch": (b"PK\x03\x04", b"\x80\x02"),  # since torch 1.6 a zip archive, before that a pickle
    "sentencepiece": (b"\x0a",),  # the first field of its protobuf message
    "npy": (b"\x93NUMPY",),
}
"""First bytes of each format; they distinguish a file from an HTML error page."""

LICENCE: Final = message("catalog.licence")

CONVERTED: Final = "cogvideo-converted"
"""Folder in $SAT_HOME for the output of `python -m cogvideo convert`, which loads faster than the checkpoints."""

PREFIXES: Final = ("", "sharefs/cogview-new")
"""Parent folders of a checkpoint in some archives."""

ICETK_FOLDER: Final = Path("~/.icetk_models")
"""Folder of `ice_image.pt` and `ice_text.model` in which icetk's downloader stores them."""


@dataclass(frozen=True)
class PublishedFile:
    """One file to download. `hub`: Hugging Face repositories that have it under this name; `urls`: other addresses."""

    name: str
    format: Format
    hub: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    size: int = 0
    """Bytes; 0 if unknown."""
    tolerance: float = 0.0
    """Relative error of `size`: published figures are rounded, and GB may mean GiB."""
    sha256: str | None = None
    icetk: bool = False
    """Whether it is stored in icetk's folder instead of $SAT_HOME."""

    @property
    def installed(self) -> str:
        """Name after installation: an archive becomes a folder."""
        return self.name.removesuffix(".zip") if self.format == "zip" else self.name

    def plausible(self, size: int) -> bool:
        """Return whether `size` bytes are within the tolerance."""
        return not self.size or abs(size - self.size) <= self.tolerance * self.size


_LFS: Final = "https://lfs.aminer.cn/misc/"
_ARCHIVE: Final = 14_200_000_000

COGVIDEO: Final = (
    PublishedFile(
        "cogvideo-stage1.zip",
        "zip",
        hub=("THUDM/CogVideo", "zai-org/CogVideo"),
        urls=(_LFS + "cogvideo/cogvideo-stage1.zip",),
        size=_ARCHIVE,
        tolerance=0.1,
        sha256="ee8e7620e75c3140a7bbdfc98cfc07b9a9cf2d5749a8efc8c092b8a6fe6ed0be",
    ),
    PublishedFile(
        "cogvideo-stage2.zip",
        "zip",
        hub=("THUDM/CogVideo", "zai-org/CogVideo"),
        urls=(_LFS + "cogvideo/cogvideo-stage2.zip",),
        size=_ARCHIVE,
        tolerance=0.1,
        sha256="68de58fc452d7daf4b65325ca86e764a5431a7eb714109b7ad64e1bf0a094da4",
    ),
    PublishedFile(
        "cogview2-dsr.zip",
        "zip",
        hub=("THUDM/CogView2", "zai-org/CogView2"),
        urls=(_LFS + "cogview/cogview2/cogview2-dsr.zip",),
        size=_ARCHIVE,
        tolerance=0.1,
    ),
    PublishedFile(
        "cluster_label2.npy",
        "npy",
        urls=(
            "https://raw.githubusercontent.com/THUDM/CogVideo/CogVideo/cluster_label2.npy",
            "https://github.com/THUDM/CogVideo/raw/CogVideo/cluster_label2.npy",
        ),
        size=160_128,
        sha256="b87880fdbe89670f12844377b9cf97a9733b1f54e3a9b73cbb9835084c4e02ec",
    ),
    PublishedFile(
        "ice_text.model",
        "sentencepiece",
        urls=("https://cloud.tsinghua.edu.cn/f/2c73ea6d3e7f4aed82ec/?dl=1",),
        icetk=True,
    ),
    PublishedFile(
        "ice_image.pt", "torch", urls=("https://cloud.tsinghua.edu.cn/f/ae2cd37af814429d875d/?dl=1",), icetk=True
    ),
)


@dataclass(frozen=True)
class WeightPaths:
    """Folders of the published files."""

    sat: Path
    icetk: Path

    @classmethod
    def usual(cls) -> WeightPaths:
        """Return $SAT_HOME (~/.sat_models) and the folder of icetk's downloader."""
        return cls(published_home(), ICETK_FOLDER.expanduser())

    @property
    def work(self) -> Path:
        """Folder of locks and unfinished files; on the file system of `sat`, so that files can be renamed."""
        return self.sat / ".download"

    def target(self, file: PublishedFile) -> Path:
        return (self.icetk if file.icetk else self.sat) / file.installed

    def has(self, file: PublishedFile) -> bool:
        """Return whether the file exists. Downloads and loaders verify its content."""
        if file.format == "zip":
            return has_checkpoint(checkpoint_folder(self.sat, file.installed))
        return self.target(file).is_file()

    def missing(self, files: tuple[PublishedFile, ...] = COGVIDEO) -> list[PublishedFile]:
        return [file for file in files if not self.has(file)]

    def complete(self) -> bool:
        """Return whether the model can be loaded. A converted copy replaces the archives."""
        converted = (self.sat / CONVERTED / "backbone.safetensors").is_file()
        return all(converted and file.format == "zip" for file in self.missing())


def published_home() -> Path:
    """Return the folder of the published checkpoints: $SAT_HOME, or ~/.sat_models as in SwissArmyTransformer."""
    return Path(os.environ.get("SAT_HOME", "~/.sat_models")).expanduser()


def checkpoint_folder(home: Path, name: str) -> Path:
    """Return the folder of a checkpoint in `home`, under a known prefix; without a prefix if none exists."""
    folders = [home / prefix / name for prefix in PREFIXES]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def has_checkpoint(folder: Path) -> bool:
    """Return whether `folder` has the files of one network in the published format."""
    return (folder / "model_config.json").is_file() and any(folder.glob("*/mp_rank_00_model_states.pt"))
