"""`python -m cogvideo download cogvideo`: the published files, checked, into the folders where the loader looks.

In: nothing but the rows of `cogvideo.published`. Out: whole files and folders; what is not finished stays in
$SAT_HOME/.download and is gone on with by the next call. Several processes may ask for the same file: one fetches it.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import shutil
import stat
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

from cogvideo.errors import CapacityError, RequestError, WeightsError
from cogvideo.fetch import Patience, Unsuitable, fetch, size_of
from cogvideo.published import COGVIDEO, LICENCE, MAGIC, Places, PublishedFile, checkpoint_folder, has_checkpoint

SPARE: Final = 2 * 10**9
"""Bytes of disk that stay free, for the files whose size nobody wrote down among others."""

DESCRIPTION = """\
下载已发布的 94 亿参数 CogVideo 模型：约 43 GB，需要约 59 GB 可用磁盘空间。中断后再次运行即从断点继续。
Fetches the published CogVideo model of 9.4 billion parameters: about 43 GB, which takes about 59 GB of free disk
while it is unpacked. Interrupted, the same command goes on where it ended.

Hugging Face first (HF_ENDPOINT and HF_TOKEN count), then the authors' other addresses. What is downloaded is checked
by format, size and, where it is known, SHA-256. Files go to $SAT_HOME (~/.sat_models) and ~/.icetk_models."""


def main(arguments: Sequence[str]) -> int:
    """Fetches what is missing and returns 0. Raises CogVideoError."""
    options = _parser().parse_args(arguments)
    if options.model == "mini":
        print("mini 随仓库附带，无需下载。\nmini comes with the repository: there is nothing to download.")
        return 0
    places = Places.usual()
    Download(places, COGVIDEO, options.source, options.keep_archives).run()
    print(f"模型已就绪：{places.sat}\nThe model is there: {places.sat}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cogvideo download",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=("cogvideo", "mini"), help="cogvideo; mini is there already")
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="DIR",
        help="take what this folder has (archives, unpacked folders, icetk's files) and fetch only the rest / "
        "优先使用此文件夹中已有的文件",
    )
    parser.add_argument(
        "--keep-archives", action="store_true", help="do not delete an archive once it is unpacked / 解压后保留压缩包"
    )
    return parser


@dataclass(frozen=True)
class Download:
    """Fetches the missing ones of `files`. `source`: a folder that may have some of them already."""

    places: Places
    files: tuple[PublishedFile, ...]
    source: Path | None = None
    keep: bool = False
    patience: Patience = field(default_factory=Patience)

    def run(self) -> None:
        """Returns when all files are there. Raises RequestError, CapacityError, WeightsError."""
        if self.source is not None and not self.source.is_dir():
            raise RequestError(
                f"文件夹 {self.source} 不存在：请检查 --from。", f"The folder {self.source} does not exist: see --from."
            )
        missing = self.places.missing(self.files)
        if not missing:
            return
        with _enough_disk(self.places.sat):
            self.places.work.mkdir(parents=True, exist_ok=True)
            self._show_licence()
            self._require_space(missing)
            for file in missing:
                self._get(file)

    def _get(self, file: PublishedFile) -> None:
        from filelock import FileLock, Timeout

        lock = FileLock(self.places.work / f"{file.name}.lock")
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            _say(f"另一个进程正在下载 {file.name}，请稍候。", f"Another process fetches {file.name}: waiting for it.")
            held = lock.acquire()
        with held:
            if not self.places.has(file):
                _require_free(self.places.target(file))
                self._install_first(file)

    def _install_first(self, file: PublishedFile) -> None:
        """The file from the first source that gives a sound one. Raises WeightsError with the reasons of all."""
        reasons = []
        for address, obtain in self._sources(file):
            try:
                path = obtain()
                ours = self.places.work in path.parents
                try:
                    self._install(file, path, ours)
                except Unsuitable:
                    if ours:
                        _remove(path)
                    raise
                return
            except Unsuitable as refusal:
                reasons.append(f"{address}: {refusal}")
                _say(f"无法从 {address} 获取：{refusal}", f"Not from {address}: {refusal}")
        target = self.places.target(file)
        raise WeightsError(
            f"无法获取 {file.name}（{'；'.join(reasons)}）。请稍后重试，或从别处取得后用 --from 指定其文件夹，"
            f"或自行放到 {target}。",
            f"{file.name} could not be fetched ({'; '.join(reasons)}). Try again later, or get it elsewhere and name "
            f"its folder with --from, or put it at {target} yourself.",
        )

    def _sources(self, file: PublishedFile) -> Iterator[tuple[str, Callable[[], Path]]]:
        """Where to look, in this order: what somebody says is here need not come over the network."""
        if self.source is not None:
            for found in (checkpoint_folder(self.source, file.installed), self.source / file.name):
                if found.exists():
                    yield str(found), lambda found=found: found  # type: ignore[misc]
        for repository in file.hub:
            yield f"Hugging Face {repository}", lambda r=repository: self._from_hub(file, r)  # type: ignore[misc]
        for url in file.urls:
            yield url, lambda u=url: self._from_url(file, u)  # type: ignore[misc]

    def _from_hub(self, file: PublishedFile, repository: str) -> Path:
        """Through huggingface_hub, which resumes, knows mirrors, tokens and proxies. Raises Unsuitable."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        _say(f"从 Hugging Face {repository} 下载 {file.name}", f"Fetching {file.name} from Hugging Face {repository}")
        endpoint = os.environ.get("HF_ENDPOINT")
        try:
            path = hf_hub_download(repository, file.name, local_dir=self.places.work / "hub", endpoint=endpoint)
        except HfHubHTTPError as error:
            raise Unsuitable(str(error).strip().splitlines()[0]) from error
        except Exception as error:  # its transports (HTTP, Xet) have exceptions of their own
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise
            raise Unsuitable(f"{type(error).__name__}: {error}") from error
        return Path(path)

    def _from_url(self, file: PublishedFile, url: str) -> Path:
        part = self.places.work / f"{file.name}.part"
        with _bar(file.name, file.size) as bar:
            fetch(url, part, file, bar, self.patience)
        return part

    def _install(self, file: PublishedFile, path: Path, ours: bool) -> None:
        """Check what came and put it in its place whole. Raises Unsuitable."""
        target = self.places.target(file)
        staging = self.places.work / f"{file.installed}.new"
        _remove(staging)
        try:
            if path.is_dir():
                _copy_folder(path, staging)
            else:
                verify(path, file)
                if file.format == "zip":
                    unpack(path, file.installed, staging)
                elif not ours:
                    shutil.copyfile(path, staging)
            _put(path if ours and file.format != "zip" else staging, target)
        finally:
            _remove(staging)
        if ours and not self.keep:
            path.unlink(missing_ok=True)

    def _show_licence(self) -> None:
        shown = self.places.work / "licence-shown"
        if not shown.exists():
            _say(*LICENCE)
            shown.touch()

    def _require_space(self, missing: Sequence[PublishedFile]) -> None:
        """Every archive's content is as large as the archive; only one archive is there at a time."""
        archives = [file.size for file in missing if file.format == "zip"]
        begun = sum(size_of(self.places.work / f"{file.name}.part") for file in missing)
        needed = sum(file.size for file in missing) - begun + SPARE
        needed += (sum(archives) if self.keep else max(archives, default=0)) if archives else 0
        free = shutil.disk_usage(self.places.work).free
        if free < needed:
            raise CapacityError(
                f"{self.places.sat} 所在磁盘仅剩 {free / 1e9:.1f} GB，需要 {needed / 1e9:.1f} GB："
                "请清理磁盘，或用 SAT_HOME 指向更大的磁盘。",
                f"The disk of {self.places.sat} has {free / 1e9:.1f} GB free where {needed / 1e9:.1f} GB are needed: "
                "make room, or let SAT_HOME name a folder on a larger disk.",
            )


def verify(path: Path, file: PublishedFile) -> None:
    """Format, size and hash are those of `file`. Raises Unsuitable."""
    with path.open("rb") as stream:
        beginning = stream.read(16)
    if not beginning.startswith(MAGIC[file.format]):
        raise Unsuitable(f"no {file.format} file: it begins with {beginning!r}")
    if not file.plausible(size_of(path)):
        raise Unsuitable(f"{size_of(path)} bytes instead of about {file.size}")
    if file.sha256 is not None and (found := _digest(path)) != file.sha256:
        raise Unsuitable(f"SHA-256 {found} instead of {file.sha256}")


def unpack(archive: Path, name: str, folder: Path) -> None:
    """The archive's folder `name`, wherever in it, as `folder`. Raises Unsuitable; archives name paths at will."""
    try:
        with zipfile.ZipFile(archive) as opened:
            members = list(_members(opened, name))
            with _bar(f"{name} (unzip)", sum(info.file_size for info, _ in members)) as bar:
                for info, relative in members:
                    path = folder / relative
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with opened.open(info) as source, path.open("xb") as target:  # reading checks the CRC
                        _copy(source, target, bar)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, FileExistsError) as error:
        raise Unsuitable(f"a broken archive ({error})") from error
    if not has_checkpoint(folder):
        raise Unsuitable(f"an archive without the folder {name} of a checkpoint")


def _members(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Files below the folder `name`, and their paths in it. Raises Unsuitable where a path leads out of the archive."""
    for info in archive.infolist():
        path = PurePosixPath(info.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
            raise Unsuitable(f"an archive with the unsafe path {info.filename!r}")
        if not info.is_dir() and name in path.parts[:-1]:
            yield info, PurePosixPath(*path.parts[path.parts.index(name) + 1 :])


def _copy_folder(folder: Path, target: Path) -> None:
    if not has_checkpoint(folder):
        raise Unsuitable("no model_config.json, or no checkpoint")
    shutil.copytree(folder, target)


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
    near = target.with_name(target.name + ".new")
    shutil.move(path, near)
    near.replace(target)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream, _bar(f"{path.name} (SHA-256)", size_of(path)) as bar:
        while block := stream.read(2**20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _copy(source: IO[bytes], target: IO[bytes], bar: Any) -> None:
    while block := source.read(2**20):
        target.write(block)
        bar.update(len(block))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _bar(name: str, total: int) -> Any:
    """Bytes done, speed and time left; only where somebody looks."""
    from tqdm import tqdm

    return tqdm(total=total or None, desc=name, unit="B", unit_scale=True, dynamic_ncols=True, disable=None)


def _say(zh: str, en: str) -> None:
    print(f"{zh}\n{en}", file=sys.stderr)


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
