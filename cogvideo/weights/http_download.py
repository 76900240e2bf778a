"""One file over HTTP into a `.part` file that a later call resumes.

In: an address and the catalog's row of the file. Out: a part file with all bytes, not yet verified. A lost connection
is resumed with a range request; an address that returns something else raises `InvalidSourceError`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from cogvideo.weights.catalog import MAGIC, PublishedFile

CHUNK: Final = 2**16
"""Bytes between two writes; at most these are lost with a connection."""

RETRIED_STATUS: Final = (408, 425, 429, 500, 502, 503, 504)

MAX_WAIT: Final = 30.0
"""Seconds between two attempts, at most."""


class InvalidSourceError(Exception):
    """The address does not provide the file; another address may."""


class ConnectionLostError(InvalidSourceError):
    """Connections end without new bytes."""


class ProgressBar(Protocol):
    """The part of tqdm's interface that is used."""

    n: float
    total: float | None

    def update(self, n: float) -> object: ...

    def refresh(self) -> object: ...


@dataclass(frozen=True)
class DownloadPolicy:
    """Timeouts in seconds, and the number of attempts in a row that may bring no new byte."""

    connect_timeout: float = 15.0
    read_timeout: float = 30.0
    max_retries: int = 5
    backoff_factor: float = 1.0
    """Seconds before the second attempt; doubled for each further one, up to `MAX_WAIT`."""
    wait: Callable[[float], object] = time.sleep


def fetch(url: str, part: Path, file: PublishedFile, bar: ProgressBar, policy: DownloadPolicy) -> None:
    """Append the missing bytes of `url` to `part`. Raises InvalidSourceError; OSError if the disk is full."""
    part.parent.mkdir(parents=True, exist_ok=True)
    _drop_older_note(part)
    fruitless = 0
    with _session(policy) as session:
        while True:
            before = size_of(part)
            try:
                _receive(session, url, part, file, bar, policy)
                return
            except requests.exceptions.RetryError as error:
                raise ConnectionLostError(f"{type(error).__name__}: {error}") from error
            except requests.RequestException as error:
                fruitless = 0 if size_of(part) > before else fruitless + 1
                if fruitless >= policy.max_retries:
                    raise ConnectionLostError(f"{type(error).__name__}: {error}") from error
            policy.wait(min(policy.backoff_factor * 2.0**fruitless, MAX_WAIT))


def size_of(path: Path) -> int:
    """Return the file's size in bytes, 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def _session(policy: DownloadPolicy) -> requests.Session:
    """A session that repeats requests which a server answers with a temporary error."""
    retry = Retry(
        total=policy.max_retries - 1,
        connect=0,  # counted by `fetch`, together with connections that are lost later
        read=0,
        status_forcelist=RETRIED_STATUS,
        backoff_factor=policy.backoff_factor,
        backoff_max=MAX_WAIT,
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _receive(
    session: requests.Session, url: str, part: Path, file: PublishedFile, bar: ProgressBar, policy: DownloadPolicy
) -> None:
    """Read from one connection. Raises requests.RequestException if it is lost, InvalidSourceError."""
    have = size_of(part)
    with _get(session, url, have, policy) as answer:
        if have and answer.status_code == 416:
            if _is_complete(answer, have):
                return
            part.unlink()
            raise requests.ConnectionError("the bytes fetched earlier are not the beginning of this file")
        start, total = _range(answer, file)
        if start != have:  # the server ignores ranges, or returns another one
            if start:
                raise InvalidSourceError(f"requested bytes from {have}, received bytes from {start}")
            part.unlink(missing_ok=True)
        bar.total, bar.n = total, start
        bar.refresh()
        with part.open("ab") as out:
            for chunk in _chunks(answer, file, start):
                out.write(chunk)
                bar.update(len(chunk))
        if total is not None and size_of(part) > total:
            part.unlink()
            raise InvalidSourceError(f"more than the {total} bytes that were announced")


@contextmanager
def _get(session: requests.Session, url: str, have: int, policy: DownloadPolicy) -> Iterator[requests.Response]:
    """Request all bytes from `have` on. Raises RequestException, InvalidSourceError."""
    headers = {"Accept-Encoding": "identity"}  # otherwise sizes would count compressed bytes
    if have:
        headers["Range"] = f"bytes={have}-"
    timeouts = policy.connect_timeout, policy.read_timeout
    with session.get(url, headers=headers, stream=True, timeout=timeouts) as answer:
        if answer.status_code >= 400 and answer.status_code != 416:
            raise InvalidSourceError(f"HTTP {answer.status_code}")
        yield answer


def _chunks(answer: requests.Response, file: PublishedFile, start: int) -> Iterator[bytes]:
    """Yield the body in pieces; check the file's first bytes. Raises InvalidSourceError."""
    for chunk in answer.iter_content(CHUNK):
        if not start and not chunk.startswith(MAGIC[file.format]):
            raise InvalidSourceError(f"not a {file.format} file: it begins with {chunk[:16]!r}")
        start += len(chunk)
        yield chunk


def _is_complete(answer: requests.Response, have: int) -> bool:
    """Whether status 416 means that the `have` bytes are the whole file; otherwise they belong to another file."""
    whole = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
    return whole is not None and int(whole[1]) == have


def _range(answer: requests.Response, file: PublishedFile) -> tuple[int, int | None]:
    """Return the body's offset in the file, and the file's size if it is known. Raises InvalidSourceError."""
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise InvalidSourceError("a web page instead of the file")
    start, total = 0, answer.headers.get("Content-Length", "")
    if answer.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if found is None:
            raise InvalidSourceError("a partial response without a valid Content-Range")
        start, total = int(found[1]), found[2]
    if not total.isdigit():
        return start, None
    if not file.plausible(int(total)):
        raise InvalidSourceError(f"{total} bytes instead of about {file.size}")
    return start, int(total)


def _drop_older_note(part: Path) -> None:
    """Cut a part of version 0.1, which has gaps listed in a note beside it, to the bytes before the first gap."""
    note = part.with_name(part.name + ".missing")
    if not note.exists():
        return
    try:
        gaps = [int(start) for start, _ in json.loads(note.read_text(encoding="utf-8"))["missing"]]
        complete = min(gaps, default=size_of(part))
    except (ValueError, KeyError, TypeError):
        complete = 0
    if part.exists():
        with part.open("r+b") as out:
            out.truncate(min(complete, size_of(part)))
    note.unlink()
