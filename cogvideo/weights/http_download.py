"""One file over HTTP into a `.part` file, which a later call goes on with; wrong answers are told from lost ones.

In: an address and the row that says what should be there. Out: a part file with all bytes, not yet verified.
Where the server serves ranges, several connections bring a block each (`cogvideo.weights.byte_ranges` says what is
missing); where it does not, one connection brings all. A lost connection is taken up again; an address that gives
something else raises `Unsuitable`.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import requests

from cogvideo.weights.byte_ranges import ByteRange, MissingRanges
from cogvideo.weights.catalog import MAGIC, PublishedFile

CHUNK: Final = 2**16
"""Bytes between two writes; at most these are lost with a connection."""

WORTH_ANOTHER_TRY: Final = (408, 425, 429, 500, 502, 503, 504)

LONGEST_WAIT: Final = 30.0


class InvalidSourceError(Exception):
    """This address does not give the file; another one may."""


class ConnectionLostError(InvalidSourceError):
    """Connections end and bring nothing; other connections may."""


class RemoteFileChangedError(InvalidSourceError):
    """The part was begun with a file of another length."""


class RangesUnsupportedError(Exception):
    """This server gives whole files only, or does not say how long they are."""


class Bar(Protocol):
    """What is used of tqdm."""

    n: float
    total: float | None

    def update(self, n: float) -> object: ...

    def refresh(self) -> object: ...


@dataclass(frozen=True)
class DownloadPolicy:
    """Seconds until a connection or a silent server is given up, and attempts in a row that bring no new byte."""

    connect_timeout: float = 15.0
    read_timeout: float = 30.0
    max_retries: int = 5
    wait: Callable[[float], object] = time.sleep
    connections: int = 4
    """At the same time, to one server that serves ranges."""
    block: int = 2**25
    """Bytes that one request asks for."""


def fetch(url: str, part: Path, file: PublishedFile, bar: Bar, patience: DownloadPolicy) -> None:
    """All bytes of `url` into `part`, after those that are there. Raises Unsuitable; OSError where the disk is full."""
    try:
        try:
            Fetch(url, part, file, bar, patience).run()
        except RemoteFileChangedError:
            part.unlink()
            Fetch(url, part, file, bar, patience).run()
    except RangesUnsupportedError:
        MissingRanges.forget(part)
        _whole(url, part, file, bar, patience)


class Fetch:
    """A file by ranges, over several connections. What is missing is on disk after every block."""

    def __init__(self, url: str, part: Path, file: PublishedFile, bar: Bar, patience: DownloadPolicy) -> None:
        self.url, self.part, self.file, self.bar, self.patience = url, part, file, bar, patience
        self.missing = MissingRanges.of(part)
        self._stop = threading.Event()
        self._bar_lock = threading.Lock()

    def run(self) -> None:
        """Returns when the part is whole. Raises Unsuitable and NoRanges."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        with self.missing.kept(), self.part.open("r+b" if self.part.exists() else "w+b") as out:
            self._bring(out.fileno())  # the first block alone: its answer says how long the file is
            if self.missing.left:
                self._all_at_once(out.fileno())
            out.truncate(self.missing.total)
        MissingRanges.forget(self.part)

    def _all_at_once(self, out: int) -> None:
        count = min(self.patience.connections, -(-self.missing.left // self.patience.block))
        with ThreadPoolExecutor(count, thread_name_prefix="cogvideo-fetch") as pool:
            works = [pool.submit(self._work, out) for _ in range(count)]
            try:
                wait(works)
            finally:
                self._stop.set()  # Ctrl-C: the others end at their next bytes
        errors = [error for work in works if (error := work.exception()) is not None]
        if errors and (self.missing.left or not all(isinstance(error, InvalidSourceError) for error in errors)):
            raise next((error for error in errors if not isinstance(error, InvalidSourceError)), errors[0])

    def _work(self, out: int) -> None:
        """Blocks until none is left. A connection that brings nothing leaves its work to the others."""
        while self.missing.left_to_take and not self._stop.is_set():
            try:
                self._bring(out)
            except ConnectionLostError:
                raise
            except BaseException:
                self._stop.set()
                raise

    def _bring(self, out: int) -> None:
        """One block, however often its connection is lost. Raises Unsuitable (`Lost`: nothing comes) and NoRanges."""
        fruitless = 0
        with self.missing.taken(self.patience.block) as span:
            while span.left and not self._stop.is_set():
                before = span.start
                try:
                    self._receive(out, span)
                except requests.RequestException as error:
                    fruitless = 0 if span.start > before else fruitless + 1
                    if fruitless >= self.patience.max_retries:
                        raise ConnectionLostError(f"{type(error).__name__}: {error}") from error
                    self.patience.wait(min(2.0**fruitless, LONGEST_WAIT))

    def _receive(self, out: int, span: ByteRange) -> None:
        """One connection. Raises requests.RequestException where it is lost."""
        with _ask(self.url, f"bytes={span.start}-{span.end - 1}", self.patience) as answer:
            if answer.status_code == 416:
                if not _nothing_after(answer, span.start):
                    raise RemoteFileChangedError(f"no bytes from {span.start} on")
                self.missing.learn(span.start)
                return
            start, total = _range(answer, self.file)
            if answer.status_code != 206 or total is None:
                raise RangesUnsupportedError
            if start != span.start:
                raise InvalidSourceError(f"bytes from {span.start} were asked for, those from {start} came")
            self.missing.learn(total)
            if total != self.missing.total:
                raise RemoteFileChangedError(f"{total} bytes, those that are there belong to {self.missing.total}")
            self._show_total(total)
            for chunk in _chunks(answer, self.file, start):
                piece = chunk[: span.left]  # a server may give more than was asked for
                os.pwrite(out, piece, span.start)
                span.advance(len(piece))
                with self._bar_lock:
                    self.bar.update(len(piece))
                if not span.left or self._stop.is_set():
                    return
            raise requests.ConnectionError("the answer ended early")

    def _show_total(self, total: int) -> None:
        with self._bar_lock:
            if self.bar.total != total or not self.bar.n:
                self.bar.total, self.bar.n = total, total - self.missing.left
                self.bar.refresh()


def _whole(url: str, part: Path, file: PublishedFile, bar: Bar, patience: DownloadPolicy) -> None:
    """All bytes over one connection after the other. Raises Unsuitable."""
    fruitless = 0
    while True:
        before = size_of(part)
        try:
            _receive_rest(url, part, file, bar, patience)
            return
        except requests.RequestException as error:
            fruitless = 0 if size_of(part) > before else fruitless + 1
            if fruitless >= patience.max_retries:
                raise ConnectionLostError(f"{type(error).__name__}: {error}") from error
        patience.wait(min(2.0**fruitless, LONGEST_WAIT))


def _receive_rest(url: str, part: Path, file: PublishedFile, bar: Bar, patience: DownloadPolicy) -> None:
    """One connection. Raises requests.RequestException where it is lost, Unsuitable where it gives something else."""
    have = size_of(part)
    with _ask(url, f"bytes={have}-" if have else None, patience) as answer:
        if have and answer.status_code == 416:
            if _nothing_after(answer, have):
                return
            part.unlink()
            raise requests.ConnectionError("what was fetched before is no beginning of this file")
        start, total = _range(answer, file)
        if start != have:  # the server ignores ranges, or gives another one
            if start:
                raise InvalidSourceError(f"bytes from {have} were asked for, those from {start} came")
            part.unlink(missing_ok=True)
        bar.total, bar.n = total, start
        bar.refresh()
        with part.open("ab") as out:
            for chunk in _chunks(answer, file, start):
                out.write(chunk)
                bar.update(len(chunk))


@contextmanager
def _ask(url: str, wanted: str | None, patience: DownloadPolicy) -> Iterator[requests.Response]:
    """The answer to a GET for all, or for the range `wanted`. Raises RequestException, Unsuitable."""
    headers = {"Accept-Encoding": "identity"}  # else sizes would count packed bytes
    if wanted:
        headers["Range"] = wanted
    with requests.get(
        url, headers=headers, stream=True, timeout=(patience.connect_timeout, patience.read_timeout)
    ) as answer:
        if answer.status_code >= 400 and answer.status_code not in (416, *WORTH_ANOTHER_TRY):
            raise InvalidSourceError(f"HTTP {answer.status_code}")
        if answer.status_code != 416:
            answer.raise_for_status()
        yield answer


def _chunks(answer: requests.Response, file: PublishedFile, start: int) -> Iterator[bytes]:
    """The body in pieces; the file's first bytes are looked at. Raises Unsuitable."""
    for chunk in answer.iter_content(CHUNK):
        if not start and not chunk.startswith(MAGIC[file.format]):
            raise InvalidSourceError(f"no {file.format} file: it begins with {chunk[:16]!r}")
        start += len(chunk)
        yield chunk


def _nothing_after(answer: requests.Response, have: int) -> bool:
    """Whether 416 means that the `have` bytes are the whole file; otherwise they belong to another one."""
    whole = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
    return whole is not None and int(whole[1]) == have


def _range(answer: requests.Response, file: PublishedFile) -> tuple[int, int | None]:
    """Where the body begins in the file, and the size of the file where the server tells it. Raises Unsuitable."""
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise InvalidSourceError("a web page instead of the file")
    start, total = 0, answer.headers.get("Content-Length", "")
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found is None:
            raise InvalidSourceError("a part without saying which")
        start, total = int(found[1]), found[2]
    if not total.isdigit():
        return start, None
    if not file.plausible(int(total)):
        raise InvalidSourceError(f"{total} bytes instead of about {file.size}")
    return start, int(total)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
