"""Which bytes of a half-fetched file are missing: kept beside the file, so that any later process can go on.

A part without such a note is the beginning of its file. The note is written after every block, whole or not at all;
what a killed process had fetched since is fetched again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class ByteRange:
    """Bytes [start, end) that are still to come."""

    start: int
    end: int

    @property
    def left(self) -> int:
        return self.end - self.start

    def advance(self, count: int) -> None:
        self.start += count


class MissingRanges:
    """Spans of one file; threads take them, and give back what they could not get.

    `total` None: the file's length is not known yet, and only the first block may be taken.
    """

    def __init__(self, note: Path, total: int | None, free: list[ByteRange], have: int = 0) -> None:
        self._note, self.total, self._free, self._have = note, total, free, have
        self._taken: list[ByteRange] = []
        self._lock = threading.Lock()

    @classmethod
    def of(cls, part: Path) -> MissingRanges:
        """What `part` lacks, from its note or its length; a note that makes no sense counts as nothing fetched."""
        note, size = _note(part), part.stat().st_size if part.exists() else 0
        if not note.exists() or not part.exists():
            return cls(note, None, [], size)
        try:
            read = json.loads(note.read_text(encoding="utf-8"))
            total, free = int(read["total"]), [ByteRange(int(start), int(end)) for start, end in read["missing"]]
            if size > total or not all(0 <= span.start <= span.end <= total for span in free):
                raise ValueError(f"{total}, {free}")
        except (ValueError, KeyError, TypeError):
            return cls(note, None, [])
        return cls(note, total, free)

    @staticmethod
    def forget(part: Path) -> None:
        """After this `part` is a beginning again: whole, or, where bytes were missing, nothing."""
        note = _note(part)
        if note.exists():
            if MissingRanges.of(part).left:
                part.unlink(missing_ok=True)
            note.unlink()

    @property
    def left(self) -> int:
        """Bytes still to come, those included that somebody fetches now; 0 also where the length is not known."""
        with self._lock:
            return sum(span.left for span in (*self._free, *self._taken))

    @property
    def left_to_take(self) -> bool:
        with self._lock:
            return bool(self._free)

    @property
    def received(self) -> int:
        return self._have if self.total is None else self.total - self.left

    def learn(self, total: int) -> None:
        """The file has `total` bytes. Only the first call counts: the part was begun with that length."""
        with self._lock:
            if self.total is None:
                self.total = total
                (first,) = self._taken
                first.end = min(first.end, total)
                if first.end < total:
                    self._free.append(ByteRange(first.end, total))

    @contextmanager
    def taken(self, count: int) -> Iterator[ByteRange]:
        """At most `count` bytes that nobody else fetches; what is left of them is free again afterwards."""
        span = self._take(count)
        try:
            yield span
        finally:
            with self._lock:
                self._taken.remove(span)
                if self.total is not None and span.left:
                    self._free.insert(0, span)
            self._save()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """However the block ends, the note says what is there."""
        try:
            yield
        finally:
            self._save()

    def _take(self, count: int) -> ByteRange:
        with self._lock:
            if self.total is None:
                span = ByteRange(self._have, self._have + count)
            elif not self._free:
                span = ByteRange(self.total, self.total)
            else:
                first = self._free[0]
                span = ByteRange(first.start, min(first.end, first.start + count))
                first.start = span.end
                if not first.left:
                    self._free.pop(0)
            self._taken.append(span)
            return span

    def _save(self) -> None:
        with self._lock:
            if self.total is None:
                return
            spans = [[span.start, span.end] for span in (*self._free, *self._taken) if span.left]
            draft = self._note.with_name(self._note.name + ".new")
            draft.write_text(json.dumps({"total": self.total, "missing": spans}), encoding="utf-8")
            draft.replace(self._note)


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".missing")
