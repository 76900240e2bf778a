"""Verification of downloaded files and unpacking of archives. `InvalidSourceError` states what is wrong."""

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
    """Check format, size and hash; the content instead if the hash is unknown. Raises InvalidSourceError."""
    with path.open("rb") as stream:
        beginning = stream.read(16)
    if not beginning.startswith(MAGIC[file.format]):
        raise InvalidSourceError(f"not a {file.format} file: it begins with {beginning!r}")
    if not file.plausible(size_of(path)):
        raise InvalidSourceError(f"{size_of(path)} bytes instead of about {file.size}")
    if file.sha256 is None:
        _read(path, file)
    elif (found := _digest(path, bars)) != file.sha256:
        raise InvalidSourceError(f"SHA-256 {found} instead of {file.sha256}")


def _read(path: Path, file: PublishedFile) -> None:
    """Read a small file with its own library: without size and hash, nothing else shows that it is complete."""
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
    except Exception as error:  # a damaged file may raise anything
        raise InvalidSourceError(f"not a complete {file.format} file ({error})") from error


def _read_torch(path: Path) -> None:
    import torch

    packed = zipfile.is_zipfile(path)
    torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    if packed:
        with zipfile.ZipFile(path) as opened:
            if bad := opened.testzip():
                raise ValueError(f"wrong checksum of {bad}")


GROWTH = 3
"""Unpacked size relative to the archive, at most. Weights hardly compress; a larger ratio may be a zip bomb."""

ARCHIVE_ERRNOS = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, None)
"""Values of OSError.errno that a broken archive causes: conflicting names, or data that bzip2 cannot read."""


def unpack(archive: Path, name: str, folder: Path, bars: Any) -> None:
    """Unpack the archive's folder `name`, at any depth, to `folder`. Raises InvalidSourceError."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = list(_members(opened, name))
            size, limit = sum(info.file_size for info, _ in members), GROWTH * size_of(archive)
            if size > limit:
                raise InvalidSourceError(f"an archive that unpacks to {size} bytes; at most {limit} are plausible")
            with bars(desc=f"{name} (unzip)", total=size) as bar:
                for info, relative in members:
                    path = folder / relative
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(info) as source, path.open("xb") as target:  # reading checks the CRC
                        _copy(source, target, bar)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError, struct.error) as error:
        raise InvalidSourceError(f"a broken archive ({error})") from error
    except OSError as error:
        if error.errno not in ARCHIVE_ERRNOS:
            raise
        raise InvalidSourceError(f"a broken archive ({error})") from error
    if not has_checkpoint(folder):
        raise InvalidSourceError(f"an archive without the folder {name} of a checkpoint")


def _members(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Yield the files in the folder `name` with their relative paths. Raises InvalidSourceError for unsafe paths."""
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
            raise InvalidSourceError(f"an archive with the unsafe path {info.filename!r}")
        if not info.is_dir() and name in path.parts[:-1]:
            yield info, PurePosixPath(*path.parts[path.parts.index(name) + 1 :])


def copy_folder(folder: Path, target: Path) -> None:
    """Copy a checkpoint's folder. Raises InvalidSourceError if it has no checkpoint."""
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
