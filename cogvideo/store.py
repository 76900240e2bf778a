"""Jobs on disk: one SQLite file (WAL) that remembers every job, its append-only log and measured speeds. No torch.

Any thread may call any method; writes are short transactions under one lock, so that a job's status and the log
entry that explains it are on disk together or not at all.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, request TEXT NOT NULL, status TEXT NOT NULL,
    created REAL NOT NULL, finished REAL, bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_by_owner ON jobs (owner, created);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, created);
CREATE TABLE IF NOT EXISTS log (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS log_by_job ON log (job, seq);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Record:
    """One row of `jobs`. `owner` is the hash of the key of whoever asked for the job, never the key itself."""

    id: str
    owner: str
    request: dict[str, Any]
    status: str
    created: float  # seconds since the epoch
    finished: float | None
    bytes: int


@dataclass(frozen=True)
class Entry:
    """One line of a job's log; `seq` grows without gaps being promised."""

    seq: int
    at: float  # seconds since the epoch
    kind: str
    data: dict[str, Any]


class Store:
    """Opens (or makes) the file at `path`. Raises sqlite3.Error where the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._base.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def add(self, record: Record) -> None:
        """Writes a new job together with its first log entry, "queued"."""
        row = (record.id, record.owner, json.dumps(record.request), record.status, record.created)
        with self._lock, _Transaction(self._base) as base:
            base.execute("INSERT INTO jobs (id, owner, request, status, created) VALUES (?, ?, ?, ?, ?)", row)
            _append(base, record.id, record.created, "queued", {})

    def append(self, job: str, at: float, kind: str, data: dict[str, Any]) -> None:
        with self._lock:
            _append(self._base, job, at, kind, data)

    def move(self, job: str, at: float, status: str, data: dict[str, Any]) -> None:
        """The job is now `status`: row and log entry of that kind in one transaction."""
        with self._lock, _Transaction(self._base) as base:
            base.execute("UPDATE jobs SET status = ? WHERE id = ?", (status, job))
            _append(base, job, at, status, data)

    def finish(self, job: str, at: float, status: str, data: dict[str, Any], size: int) -> None:
        """As `move`, for the last time: `size` is the number of bytes of the job's files."""
        with self._lock, _Transaction(self._base) as base:
            base.execute("UPDATE jobs SET status = ?, finished = ?, bytes = ? WHERE id = ?", (status, at, size, job))
            _append(base, job, at, status, data)

    def resize(self, job: str, size: int) -> None:
        with self._lock:
            self._base.execute("UPDATE jobs SET bytes = ? WHERE id = ?", (size, job))

    def delete(self, job: str) -> None:
        with self._lock, _Transaction(self._base) as base:
            base.execute("DELETE FROM jobs WHERE id = ?", (job,))
            base.execute("DELETE FROM log WHERE job = ?", (job,))

    def job(self, job: str) -> Record | None:
        found = self._records("WHERE id = ?", (job,))
        return found[0] if found else None

    def with_status(self, statuses: Sequence[str]) -> list[Record]:
        """Jobs in one of `statuses`, oldest first."""
        marks = ",".join("?" * len(statuses))
        return self._records(f"WHERE status IN ({marks}) ORDER BY created, rowid", tuple(statuses))

    def of_owner(self, owner: str, limit: int) -> list[Record]:
        """The owner's jobs, newest first."""
        return self._records("WHERE owner = ? ORDER BY created DESC, rowid DESC LIMIT ?", (owner, limit))

    def log(self, job: str, after: int = 0) -> list[Entry]:
        """The job's entries with seq > `after`, in order."""
        with self._lock:
            rows = self._base.execute(
                "SELECT seq, at, kind, data FROM log WHERE job = ? AND seq > ? ORDER BY seq", (job, after)
            ).fetchall()
        return [Entry(seq, at, kind, json.loads(data)) for seq, at, kind, data in rows]

    def setting(self, name: str, make: Callable[[], str]) -> str:
        """The stored value of `name`; made once and kept where there is none."""
        with self._lock, _Transaction(self._base) as base:
            row = base.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
            if row is None:
                row = (make(),)
                base.execute("INSERT INTO settings (name, value) VALUES (?, ?)", (name, row[0]))
            return str(row[0])

    def settings(self, prefix: str) -> dict[str, str]:
        with self._lock:
            rows = self._base.execute("SELECT name, value FROM settings").fetchall()
        return {name: value for name, value in rows if name.startswith(prefix)}

    def keep(self, name: str, value: str) -> None:
        with self._lock:
            self._base.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, value))

    def _records(self, where: str, values: tuple[Any, ...]) -> list[Record]:
        query = f"SELECT id, owner, request, status, created, finished, bytes FROM jobs {where}"
        with self._lock:
            rows = self._base.execute(query, values).fetchall()
        return [Record(row[0], row[1], json.loads(row[2]), *row[3:]) for row in rows]


class _Transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK where the block raises."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base

    def __enter__(self) -> sqlite3.Connection:
        self._base.execute("BEGIN IMMEDIATE")
        return self._base

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._base.execute("COMMIT" if kind is None else "ROLLBACK")


def _append(base: sqlite3.Connection, job: str, at: float, kind: str, data: dict[str, Any]) -> None:
    base.execute("INSERT INTO log (job, at, kind, data) VALUES (?, ?, ?, ?)", (job, at, kind, json.dumps(data)))
