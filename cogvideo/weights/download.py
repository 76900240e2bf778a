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
from cogvideo.units import format_gigabytes
from cogvideo.weights.catalog import LICENCE, PublishedFile, WeightPaths, checkpoint_folder
from cogvideo.weights.http_download import DownloadPolicy, InvalidSourceError, fetch, size_of
from cogvideo.weights.progress import Report, bars
from cogvideo.weights.verify import copy_folder, unpack, verify

SPARE: Final = 2 * 10**9
"""Bytes of disk that stay free, for the files whose size nobody wrote down among others."""


def _silent(zh: str, en: str) -> None:
    """Discard a message."""


@dataclass(frozen=True)
class Download:
    """Fetches the missing ones of `files`. `source`: a folder that may have some of them already.

    `report`: hears how far it is, in place of a bar or lines on stderr.
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
        """Returns when all files are there. Raises RequestError, CapacityError, WeightsError."""
        if self.source is not None and not self.source.is_dir():
            raise RequestError(
                f"文件夹 {self.source} 不存在：请检查 --from。", f"The folder {self.source} does not exist: see --from."
            )
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
            self.notify(
                f"另一个进程正在下载 {file.name}，请稍候。", f"Another process fetches {file.name}: waiting for it."
            )
            held = lock.acquire()
        with held:
            if not self.paths.has(file):
                _require_free(self.paths.target(file))
                self._install_first(file)

    def _install_first(self, file: PublishedFile) -> None:
        """The file from the first source that gives a sound one. Raises WeightsError with the reasons of all."""
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
            except InvalidSourceError as refusal:
                reasons.append(f"{address}: {refusal}")
                self.notify(f"无法从 {address} 获取：{refusal}", f"Not from {address}: {refusal}")
        target = self.paths.target(file)
        raise WeightsError(
            f"无法获取 {file.name}（{'；'.join(reasons)}）。请稍后重试，或从别处取得后用 --from 指定其文件夹，"
            f"或自行放到 {target}。",
            f"{file.name} could not be fetched ({'; '.join(reasons)}). Try again later, or get it elsewhere and name "
            f"its folder with --from, or put it at {target} yourself.",
        )

    def _sources(self, file: PublishedFile) -> Iterator[tuple[str, Callable[[], Path]]]:
        """Where to look, in this order: what somebody says is here need not come over the network."""
        for found in self._here(file):
            yield str(found), lambda found=found: found  # type: ignore[misc]
        for repository in file.hub:
            yield f"Hugging Face {repository}", lambda r=repository: self._from_hub(file, r)  # type: ignore[misc]
        for url in file.urls:
            resumed = self._part(file).exists()
            yield url, lambda u=url: self._from_url(file, u)  # type: ignore[misc]
            if resumed and not self._part(file).exists():  # what was there before may have been what was wrong
                yield url, lambda u=url: self._from_url(file, u)  # type: ignore[misc]

    def _here(self, file: PublishedFile) -> list[Path]:
        """What the named folder has of it, and an archive that somebody put where the model goes."""
        found = []
        if self.source is not None:
            found += [checkpoint_folder(self.source, file.installed), self.source / file.name]
        if file.format == "zip":
            found.append(self.paths.sat / file.name)
        return [path for path in dict.fromkeys(found) if path.exists()]

    def _from_hub(self, file: PublishedFile, repository: str) -> Path:
        """Through huggingface_hub, which resumes, knows mirrors, tokens and proxies. Raises Unsuitable."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        self.notify(
            f"从 Hugging Face {repository} 下载 {file.name}", f"Fetching {file.name} from Hugging Face {repository}"
        )
        endpoint = os.environ.get("HF_ENDPOINT")
        try:
            path = hf_hub_download(
                repository, file.name, local_dir=self._hub, endpoint=endpoint, tqdm_class=bars(self.report)
            )
        except HfHubHTTPError as error:
            hint = " (HF_TOKEN?)" if error.response.status_code in (401, 403) else ""
            raise InvalidSourceError(str(error).strip().splitlines()[0] + hint) from error
        except Exception as error:  # its transports (HTTP, Xet) have exceptions of their own
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
        """Check what came and put it in its place whole. Raises Unsuitable."""
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
            _put(path if ours and file.format != "zip" else staging, target)
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
        """Every archive's content is as large as the archive; only one archive is there at a time."""
        coming = [file for file in missing if not self._here(file)]
        archives = [file.size for file in coming if file.format == "zip"]
        begun = sum(size_of(self._part(file)) for file in coming)
        begun += sum(size_of(path) for path in self._hub.rglob("*.incomplete"))
        needed = sum(file.size for file in missing) - begun + SPARE
        needed += sum(archives) if self.keep else max(archives, default=0)
        free = shutil.disk_usage(self.paths.work).free
        if free < needed:
            has, requires = format_gigabytes(free), format_gigabytes(needed)
            raise CapacityError(
                f"{self.paths.sat} 所在磁盘仅剩 {has} GB，需要 {requires} GB："
                "请清理磁盘，或将 SAT_HOME 设为更大磁盘上的文件夹。",
                f"The disk of {self.paths.sat} has {has} GB free, but {requires} GB are required. Free some space, or "
                "set SAT_HOME to a folder on a larger disk.",
            )


def _require_free(target: Path) -> None:
    """What somebody put there is not ours to overwrite. Raises WeightsError before anything is fetched."""
    if target.is_dir():
        raise WeightsError(
            f"文件夹 {target} 已存在但不完整：请移走或删除后再次运行。",
            f"The folder {target} is there but incomplete: move or delete it, then run this again.",
        )


def _put(path: Path, target: Path) -> None:
    """Move into place at once, also from one file system to another."""
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
    """Inside the block a full disk, or a folder that may not be written, is a CapacityError that names the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise CapacityError(
            f"无法写入 {folder}（{error.strerror}）：请清理磁盘，或用 SAT_HOME 指向别处。",
            f"{folder} cannot be written ({error.strerror}): make room, or let SAT_HOME name another folder.",
        ) from error
