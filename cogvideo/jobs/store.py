"""The job database: one SQLite file (WAL) with all jobs, their append-only logs and measured speeds.

Thread-safe. Writes are short transactions under one lock, so a job's status and the log entry that explains it are
on disk together or not at all.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from cogvideo.errors import CapacityError
from cogvideo.jobs.log_entries import FinalEntry, LogEntry, Queued, Started, entry_from_json
from cogvideo.jobs.records import LoggedEntry, Record
from cogvideo.messages import message

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


class Store:
    """The database at `path`, created if missing.

    Raises CapacityError if the file is damaged. All methods that write raise CapacityError if the disk is full or
    read-only; then nothing is written.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._path = path
        try:
            self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._base.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + SCHEMA)
            found = self._base.execute("PRAGMA quick_check").fetchone()[0]
        except sqlite3.OperationalError as error:
            raise self._unwritable(error) from error
        except sqlite3.DatabaseError as error:
            found = str(error)
        if found != "ok":
            raise CapacityError(*message("store.queue_file_damaged", path=path, found=found))

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def add(self, *records: Record) -> None:
        """Insert new jobs, each with the log entry `Queued`: all of them or none."""
        with self._writing() as base:
            for record in records:
                row = (record.id, record.owner, record.settings, record.status, record.created)
                base.execute("INSERT INTO jobs (id, owner, request, status, created) VALUES (?, ?, ?, ?, ?)", row)
                _append(base, record.id, record.created, Queued())

    def append(self, job: str, at: float, entry: LogEntry) -> None:
        with self._writing() as base:
            _append(base, job, at, entry)

    def start(self, job: str, at: float) -> None:
        """Set the status to running and append the log entry, in one transaction."""
        with self._writing() as base:
            base.execute("UPDATE jobs SET status = ? WHERE id = ?", (Started.kind, job))
            _append(base, job, at, Started())

    def finish(self, job: str, at: float, entry: FinalEntry, size: int) -> None:
        """Set a final status and append the log entry, in one transaction. `size`: bytes of the job's files."""
        with self._writing() as base:
            base.execute(
                "UPDATE jobs SET status = ?, finished = ?, bytes = ? WHERE id = ?", (entry.kind, at, size, job)
            )
            _append(base, job, at, entry)

    def set_size(self, job: str, size: int) -> None:
        with self._writing() as base:
            base.execute("UPDATE jobs SET bytes = ? WHERE id = ?", (size, job))

    def delete(self, job: str) -> None:
        with self._writing() as base:
            base.execute("DELETE FROM jobs WHERE id = ?", (job,))
            base.execute("DELETE FROM log WHERE job = ?", (job,))

    def job(self, job: str) -> Record | None:
        found = self._records("WHERE id = ?", (job,))
        return found[0] if found else None

    def with_status(self, statuses: Sequence[str]) -> list[Record]:
        """Return jobs in one of `statuses` in order of submission, independent of the clock."""
        marks = ",".join("?" * len(statuses))
        return self._records(f"WHERE status IN ({marks}) ORDER BY rowid", tuple(statuses))

    def of_owner(self, owner: str, limit: int) -> list[Record]:
        """Return the owner's newest jobs, newest first."""
        return self._records("WHERE owner = ? ORDER BY rowid DESC LIMIT ?", (owner, limit))

    def log(self, job: str, after: int = 0) -> list[LoggedEntry]:
        """Return the job's entries with seq > `after`, in order, without kinds of newer versions."""
        with self._lock:
            rows = self._base.execute(
                "SELECT seq, at, kind, data FROM log WHERE job = ? AND seq > ? ORDER BY seq", (job, after)
            ).fetchall()
        entries = ((seq, at, entry_from_json(kind, json.loads(data))) for seq, at, kind, data in rows)
        return [LoggedEntry(seq, at, entry) for seq, at, entry in entries if entry is not None]

    def setting(self, name: str, make: Callable[[], str]) -> str:
        """Return the stored value of `name`. If there is none, store what `make` returns."""
        with self._writing() as base:
            row = base.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
            if row is None:
                row = (make(),)
                base.execute("INSERT INTO settings (name, value) VALUES (?, ?)", (name, row[0]))
            return str(row[0])

    def settings(self, prefix: str) -> dict[str, str]:
        with self._lock:
            rows = self._base.execute("SELECT name, value FROM settings").fetchall()
        return {name: value for name, value in rows if name.startswith(prefix)}

    def set_setting(self, name: str, value: str) -> None:
        with self._writing() as base:
            base.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, value))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Run one exclusive transaction."""
        with self._lock:
            try:
                self._base.execute("BEGIN IMMEDIATE")
                yield self._base
                self._base.execute("COMMIT")
            except sqlite3.OperationalError as error:
                raise self._unwritable(error) from error
            finally:
                if self._base.in_transaction:  # on some errors SQLite has rolled back already
                    self._base.execute("ROLLBACK")

    def _unwritable(self, error: sqlite3.Error) -> CapacityError:
        return CapacityError(*message("store.write_failed", name=self._path.name, error=error))

    def _records(self, where: str, values: tuple[Any, ...]) -> list[Record]:
        query = f"SELECT id, owner, request, status, created, finished, bytes FROM jobs {where}"
        with self._lock:
            rows = self._base.execute(query, values).fetchall()
        return [Record(*row) for row in rows]


def _append(base: sqlite3.Connection, job: str, at: float, entry: LogEntry) -> None:
    row = (job, at, entry.kind, json.dumps(entry.to_json()))
    base.execute("INSERT INTO log (job, at, kind, data) VALUES (?, ?, ?, ?)", row)


def lock_folder(data: Path) -> IO[str]:
    """Create the data folder and lock it for this process. The system releases the lock when the process ends.

    Raises CapacityError if the folder is not writable or another process holds the lock.
    """
    try:
        (data / "results").mkdir(parents=True, exist_ok=True)
        file = (data / "lock").open("w")
    except OSError as error:
        raise CapacityError(*message("store.folder_unusable", data=data, strerror=error.strerror)) from error
    try:
        import fcntl
    except ImportError:  # Windows has no such lock: a second server is not detected
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CapacityError(*message("store.folder_in_use", data=data)) from None
    except OSError:  # a file system without locks
        return file
    return file
