"""What arrived, before it is put in its place: is it the file that was asked for, and what is in the archive.

In: a path and the row that says what should be there. Out: nothing, or a folder; `Unsuitable` says what is wrong.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cogvideo.weights.catalog import MAGIC, PublishedFile, has_checkpoint
from cogvideo.weights.http_download import InvalidSourceError, size_of


def verify(path: Path, file: PublishedFile, bars: Any) -> None:
    """Format, size, hash and, where no hash is known, content are those of `file`. Raises Unsuitable."""
    with path.open("rb") as stream:
        beginning = stream.read(16)
    if not beginning.startswith(MAGIC[file.format]):
        raise InvalidSourceError(f"no {file.format} file: it begins with {beginning!r}")
    if not file.plausible(size_of(path)):
        raise InvalidSourceError(f"{size_of(path)} bytes instead of about {file.size}")
    if file.sha256 is None:
        _read(path, file)
    elif (found := _digest(path, bars)) != file.sha256:
        raise InvalidSourceError(f"SHA-256 {found} instead of {file.sha256}")


def _read(path: Path, file: PublishedFile) -> None:
    """Read the small files as their users will: without a known size or hash, only that tells a whole file."""
    try:
        if file.format == "sentencepiece":
            from sentencepiece import SentencePieceProcessor

            SentencePieceProcessor(model_file=str(path))
        elif file.format == "npy":
            import numpy as np

            np.load(path, allow_pickle=False)
        elif file.format == "torch":
            _read_torch(path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file brings up whatever it can
        raise InvalidSourceError(f"no whole {file.format} file ({error})") from error


def _read_torch(path: Path) -> None:
    import torch

    packed = zipfile.is_zipfile(path)
    torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    if packed:
        with zipfile.ZipFile(path) as opened:
            if bad := opened.testzip():
                raise ValueError(f"{bad} does not have its checksum")


GROWTH = 3
"""An archive of weights holds about its own size; one that holds this many times more wants to fill the disk."""

NOT_THE_DISK = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, None)
"""Reasons of an OSError that lie in the archive: names that do not go together, data that bzip2 cannot read."""


def unpack(archive: Path, name: str, folder: Path, bars: Any) -> None:
    """The archive's folder `name`, wherever in it, as `folder`. Raises Unsuitable; archives name paths at will."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = list(_members(opened, name))
            size, most = sum(info.file_size for info, _ in members), GROWTH * size_of(archive)
            if size > most:
                raise InvalidSourceError(f"an archive of {size} bytes where {most} at most are plausible")
            with bars(desc=f"{name} (unzip)", total=size) as bar:
                for info, relative in members:
                    path = folder / relative
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(info) as source, path.open("xb") as target:  # reading checks the CRC
                        _copy(source, target, bar)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise InvalidSourceError(f"a broken archive ({error})") from error
    except OSError as error:
        if error.errno not in NOT_THE_DISK:
            raise
        raise InvalidSourceError(f"a broken archive ({error})") from error
    if not has_checkpoint(folder):
        raise InvalidSourceError(f"an archive without the folder {name} of a checkpoint")


def _members(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Files below the folder `name`, and their paths in it. Raises Unsuitable where a path leads out of the archive."""
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
            raise InvalidSourceError(f"an archive with the unsafe path {info.filename!r}")
        if not info.is_dir() and name in path.parts[:-1]:
            yield info, PurePosixPath(*path.parts[path.parts.index(name) + 1 :])


def copy_folder(folder: Path, target: Path) -> None:
    """A checkpoint's folder as it is. Raises Unsuitable where it is none."""
    if not has_checkpoint(folder):
        raise InvalidSourceError("no model_config.json, or no checkpoint")
    shutil.copytree(folder, target)


def _digest(path: Path, bars: Any) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream, bars(desc=f"{path.name} (SHA-256)", total=size_of(path)) as bar:
        while block := stream.read(2**20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _copy(source: IO[bytes], target: IO[bytes], bar: Any) -> None:
    while block := source.read(2**20):
        target.write(block)
        bar.update(len(block))
