"""Download of the published files into the folders in which the loader looks.

In: rows of `cogvideo.weights.catalog`. Out: whole, verified files and folders. Unfinished files stay in
$SAT_HOME/.download, and the next call resumes them. If several processes need one file, only one downloads it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cogvideo.errors import CapacityError, RequestError, WeightsError
from cogvideo.files import atomic_write
from cogvideo.messages import message
from cogvideo.units import format_gigabytes
from cogvideo.weights.catalog import LICENCE, PublishedFile, WeightPaths, checkpoint_folder
from cogvideo.weights.http_download import DownloadPolicy, InvalidSourceError, fetch, size_of
from cogvideo.weights.progress import Report, bars
from cogvideo.weights.verify import copy_folder, unpack, verify

SPARE: Final = 2 * 10**9
"""Bytes of disk to keep free, among others for files of unknown size."""


def _silent(zh: str, en: str) -> None:
    """Discard a message."""


@dataclass(frozen=True)
class Download:
    """Download of the missing files among `files`. `source`: a folder that may have some of them.

    `keep`: keep archives after unpacking. `report`: is called with the progress, instead of bars on stderr.
    """

    paths: WeightPaths
    files: tuple[PublishedFile, ...]
    source: Path | None = None
    keep: bool = False
    policy: DownloadPolicy = field(default_factory=DownloadPolicy)
    report: Report | None = None
    notify: Callable[[str, str], None] = _silent
    """Receives a message in Chinese and in English."""

    def run(self) -> None:
        """Download, verify and install missing files. Raises RequestError, CapacityError, WeightsError."""
        if self.source is not None and not self.source.is_dir():
            raise RequestError(*message("download.source_missing", source=self.source))
        missing = self.paths.missing(self.files)
        if not missing:
            return
        with _enough_disk(self.paths.sat):
            self.paths.work.mkdir(parents=True, exist_ok=True)
            self._show_licence()
            self._require_space(missing)
            for file in missing:
                self._get(file)

    def _get(self, file: PublishedFile) -> None:
        from filelock import FileLock, Timeout

        lock = FileLock(self.paths.work / f"{file.name}.lock")
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            self.notify(*message("download.waiting_for_process", name=file.name))
            held = lock.acquire()
        with held:
            if not self.paths.has(file):
                _require_free(self.paths.target(file))
                self._install_first(file)

    def _install_first(self, file: PublishedFile) -> None:
        """Install the file from the first source that has a valid one. Raises WeightsError with all reasons."""
        reasons = []
        for address, obtain in self._sources(file):
            try:
                path = obtain()
                ours = self.paths.work in path.parents
                try:
                    self._install(file, path, ours)
                except InvalidSourceError:
                    if ours:
                        _remove(path)
                    raise
                return
            except InvalidSourceError as error:
                reasons.append(f"{address}: {error}")
                self.notify(*message("download.mirror_failed", address=address, error=error))
        target = self.paths.target(file)
        raise WeightsError(
            *message(
                "download.failed",
                name=file.name,
                reasons_zh="；".join(reasons),
                target=target,
                reasons_en="; ".join(reasons),
            )
        )

    def _sources(self, file: PublishedFile) -> Iterator[tuple[str, Callable[[], Path]]]:
        """Yield (address, function that returns the file's path): local files first, then the network."""
        for found in self._here(file):
            yield str(found), lambda found=found: found  # type: ignore[misc]
        for repository in file.hub:
            yield f"Hugging Face {repository}", lambda r=repository: self._from_hub(file, r)  # type: ignore[misc]
        for url in file.urls:
            resumed = self._part(file).exists()
            yield url, lambda u=url: self._from_url(file, u)  # type: ignore[misc]
            if (
                resumed and not self._part(file).exists()
            ):  # the part of an earlier call was invalid and has been deleted
                yield url, lambda u=url: self._from_url(file, u)  # type: ignore[misc]

    def _here(self, file: PublishedFile) -> list[Path]:
        """Return local copies: in the folder `source`, and archives in $SAT_HOME."""
        found = []
        if self.source is not None:
            found += [checkpoint_folder(self.source, file.installed), self.source / file.name]
        if file.format == "zip":
            found.append(self.paths.sat / file.name)
        return [path for path in dict.fromkeys(found) if path.exists()]

    def _from_hub(self, file: PublishedFile, repository: str) -> Path:
        """Download with huggingface_hub, which resumes and supports mirrors and tokens. Raises InvalidSourceError."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        self.notify(*message("download.from_hugging_face", repository=repository, name=file.name))
        endpoint = os.environ.get("HF_ENDPOINT")
        try:
            path = hf_hub_download(
                repository, file.name, local_dir=self._hub, endpoint=endpoint, tqdm_class=bars(self.report)
            )
        except HfHubHTTPError as error:
            hint = " (HF_TOKEN?)" if error.response.status_code in (401, 403) else ""
            raise InvalidSourceError(str(error).strip().splitlines()[0] + hint) from error
        except Exception as error:  # its transports (HTTP, Xet) define their own exceptions
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise InvalidSourceError(f"{type(error).__name__}: {error}") from error
        return Path(path)

    def _from_url(self, file: PublishedFile, url: str) -> Path:
        part = self._part(file)
        with bars(self.report)(desc=file.name, total=file.size or None) as bar:
            fetch(url, part, file, bar, self.policy)
        return part

    def _part(self, file: PublishedFile) -> Path:
        return self.paths.work / f"{file.name}.part"

    @property
    def _hub(self) -> Path:
        return self.paths.work / "hub"

    def _install(self, file: PublishedFile, path: Path, ours: bool) -> None:
        """Verify the file and move it to its target. `ours`: it may be moved or deleted. Raises InvalidSourceError."""
        target = self.paths.target(file)
        staging = self.paths.work / f"{file.installed}.new"
        _remove(staging)
        try:
            if path.is_dir():
                copy_folder(path, staging)
            else:
                verify(path, file, bars(self.report))
                if file.format == "zip":
                    unpack(path, file.installed, staging, bars(self.report))
                elif not ours:
                    shutil.copyfile(path, staging)
            _move(path if ours and file.format != "zip" else staging, target)
        finally:
            _remove(staging)
        if ours and not self.keep:
            path.unlink(missing_ok=True)

    def _show_licence(self) -> None:
        shown = self.paths.work / "licence-shown"
        if not shown.exists():
            self.notify(*LICENCE)
            shown.touch()

    def _require_space(self, missing: Sequence[PublishedFile]) -> None:
        """Raise CapacityError if the disk is too small. Archives unpack to their own size, one after another."""
        pending = [file for file in missing if not self._here(file)]
        archives = [file.size for file in pending if file.format == "zip"]
        received = sum(size_of(self._part(file)) for file in pending)
        received += sum(size_of(path) for path in self._hub.rglob("*.incomplete"))
        needed = sum(file.size for file in missing) - received + SPARE
        needed += sum(archives) if self.keep else max(archives, default=0)
        free = shutil.disk_usage(self.paths.work).free
        if free < needed:
            has, requires = format_gigabytes(free), format_gigabytes(needed)
            raise CapacityError(*message("download.disk_full", sat=self.paths.sat, has=has, requires=requires))


def _require_free(target: Path) -> None:
    """Raise WeightsError if an incomplete folder exists: it may belong to the user, so it is not overwritten."""
    if target.is_dir():
        raise WeightsError(*message("download.target_incomplete", target=target))


def _move(path: Path, target: Path) -> None:
    """Move a file or folder to `target` in one step, also across file systems for files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.rename(target)
        return
    with atomic_write(target) as temporary:
        shutil.move(path, temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _enough_disk(folder: Path) -> Iterator[None]:
    """Convert errors of a full disk or a read-only folder inside the block to CapacityError."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise CapacityError(*message("download.folder_not_writable", folder=folder, strerror=error.strerror)) from error
