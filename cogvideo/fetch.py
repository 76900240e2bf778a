"""One file over HTTP into a `.part` file, which a later call goes on with; wrong answers are told from lost ones.

In: an address and the row that says what should be there. Out: a part file with all bytes, not yet verified.
A lost connection is taken up again (`Range`); an address that gives something else raises `Unsuitable`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import requests

from cogvideo.published import MAGIC, PublishedFile

CHUNK: Final = 2**16
"""Bytes between two writes; at most these are lost with a connection."""

WORTH_ANOTHER_TRY: Final = (408, 425, 429, 500, 502, 503, 504)

LONGEST_WAIT: Final = 30.0


class Unsuitable(Exception):
    """This address does not give the file; another one may."""


class Bar(Protocol):
    """What is used of tqdm."""

    n: float
    total: float | None

    def update(self, n: float) -> object: ...

    def refresh(self) -> object: ...


@dataclass(frozen=True)
class Patience:
    """Seconds until a connection or a silent server is given up, and attempts in a row that bring no new byte."""

    connect: float = 15.0
    silence: float = 30.0
    attempts: int = 5
    wait: Callable[[float], object] = time.sleep


def fetch(url: str, part: Path, file: PublishedFile, bar: Bar, patience: Patience) -> None:
    """All bytes of `url` into `part`, after those that are there. Raises Unsuitable; OSError where the disk is full."""
    fruitless = 0
    while True:
        before = size_of(part)
        try:
            _receive(url, part, file, bar, patience)
            return
        except requests.RequestException as error:
            fruitless = 0 if size_of(part) > before else fruitless + 1
            if fruitless >= patience.attempts:
                raise Unsuitable(f"{type(error).__name__}: {error}") from error
        patience.wait(min(2.0**fruitless, LONGEST_WAIT))


def _receive(url: str, part: Path, file: PublishedFile, bar: Bar, patience: Patience) -> None:
    """One connection. Raises requests.RequestException where it is lost, Unsuitable where it gives something else."""
    have = size_of(part)
    headers = {"Accept-Encoding": "identity"}  # else sizes would count packed bytes
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=(patience.connect, patience.silence)) as answer:
        if have and answer.status_code == 416:
            _nothing_after(part, answer)
            return
        if answer.status_code >= 400 and answer.status_code not in WORTH_ANOTHER_TRY:
            raise Unsuitable(f"HTTP {answer.status_code}")
        answer.raise_for_status()
        start, total = _range(answer)
        _refuse_other(answer, file, total)
        if start != have:  # the server ignores ranges, or gives another one
            if start:
                raise Unsuitable(f"bytes from {have} were asked for, those from {start} came")
            part.unlink(missing_ok=True)
        bar.total, bar.n = total, start
        bar.refresh()
        _write(answer, part, file, start, bar)


def _write(answer: requests.Response, part: Path, file: PublishedFile, start: int, bar: Bar) -> None:
    with part.open("ab") as out:
        for chunk in answer.iter_content(CHUNK):
            if not start and not chunk.startswith(MAGIC[file.format]):
                raise Unsuitable(f"no {file.format} file: it begins with {chunk[:16]!r}")
            out.write(chunk)
            start += len(chunk)
            bar.update(len(chunk))


def _nothing_after(part: Path, answer: requests.Response) -> None:
    """The part is the whole file, or belongs to another one and has to go."""
    if (whole := re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))) and int(whole[1]) == size_of(
        part
    ):
        return
    part.unlink()
    raise requests.ConnectionError("what was fetched before is no beginning of this file")


def _range(answer: requests.Response) -> tuple[int, int | None]:
    """Where the body begins in the file, and the size of the file where the server tells it."""
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found is None:
            raise Unsuitable("a part without saying which")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _refuse_other(answer: requests.Response, file: PublishedFile, total: int | None) -> None:
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise Unsuitable("a web page instead of the file")
    if total is not None and not file.plausible(total):
        raise Unsuitable(f"{total} bytes instead of about {file.size}")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
