"""Jobs on disk: one SQLite file (WAL) that remembers every job, its append-only log and measured speeds. No torch.

Any thread may call any method; writes are short transactions under one lock, so that a job's status and the log
entry that explains it are on disk together or not at all.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cogvideo.errors import CapacityError

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
    """Opens (or makes) the file at `path`. Raises CapacityError where it is damaged or the disk does not take it.

    Whatever writes is in the file whole or not at all, and raises CapacityError where the disk does not take it.
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
            raise CapacityError(
                f"队列文件 {path} 已损坏（{found}）：请移走整个数据文件夹，或用 --data 指定另一个。",
                f"The file of the queue {path} is damaged ({found}): move the whole data folder away, or name another "
                "with --data.",
            )

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def add(self, *records: Record) -> None:
        """Writes new jobs together with their first log entries, "queued": all of them or none."""
        with self._writing() as base:
            for record in records:
                row = (record.id, record.owner, json.dumps(record.request), record.status, record.created)
                base.execute("INSERT INTO jobs (id, owner, request, status, created) VALUES (?, ?, ?, ?, ?)", row)
                _append(base, record.id, record.created, "queued", {})

    def append(self, job: str, at: float, kind: str, data: dict[str, Any]) -> None:
        with self._writing() as base:
            _append(base, job, at, kind, data)

    def move(self, job: str, at: float, status: str, data: dict[str, Any]) -> None:
        """The job is now `status`: row and log entry of that kind in one transaction."""
        with self._writing() as base:
            base.execute("UPDATE jobs SET status = ? WHERE id = ?", (status, job))
            _append(base, job, at, status, data)

    def finish(self, job: str, at: float, status: str, data: dict[str, Any], size: int) -> None:
        """As `move`, for the last time: `size` is the number of bytes of the job's files."""
        with self._writing() as base:
            base.execute("UPDATE jobs SET status = ?, finished = ?, bytes = ? WHERE id = ?", (status, at, size, job))
            _append(base, job, at, status, data)

    def resize(self, job: str, size: int) -> None:
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
        """Jobs in one of `statuses`, oldest first: in the order in which they came, whatever the clock said."""
        marks = ",".join("?" * len(statuses))
        return self._records(f"WHERE status IN ({marks}) ORDER BY rowid", tuple(statuses))

    def of_owner(self, owner: str, limit: int) -> list[Record]:
        """The owner's jobs, newest first."""
        return self._records("WHERE owner = ? ORDER BY rowid DESC LIMIT ?", (owner, limit))

    def log(self, job: str, after: int = 0) -> list[Entry]:
        """The job's entries with seq > `after`, in order."""
        with self._lock:
            rows = self._base.execute(
                "SELECT seq, at, kind, data FROM log WHERE job = ? AND seq > ? ORDER BY seq", (job, after)
            ).fetchall()
        return [Entry(seq, at, kind, json.loads(data)) for seq, at, kind, data in rows]

    def setting(self, name: str, make: Callable[[], str]) -> str:
        """The stored value of `name`; made once and kept where there is none."""
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

    def keep(self, name: str, value: str) -> None:
        with self._writing() as base:
            base.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", (name, value))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction, which no other thread disturbs."""
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
        return CapacityError(
            f"无法写入数据文件夹中的 {self._path.name}（{error}）：请检查服务器的磁盘空间和文件夹权限。",
            f"{self._path.name} in the data folder cannot be written ({error}): check the server's disk space and the "
            "folder's rights.",
        )

    def _records(self, where: str, values: tuple[Any, ...]) -> list[Record]:
        query = f"SELECT id, owner, request, status, created, finished, bytes FROM jobs {where}"
        with self._lock:
            rows = self._base.execute(query, values).fetchall()
        return [Record(row[0], row[1], json.loads(row[2]), *row[3:]) for row in rows]


def _append(base: sqlite3.Connection, job: str, at: float, kind: str, data: dict[str, Any]) -> None:
    base.execute("INSERT INTO log (job, at, kind, data) VALUES (?, ?, ?, ?)", (job, at, kind, json.dumps(data)))


def lock_folder(data: Path) -> IO[str]:
    """Makes the data folder and holds it for this process; the system lets go when the process ends, however it ends.

    Raises CapacityError where it cannot be written, or another process holds it.
    """
    try:
        (data / "results").mkdir(parents=True, exist_ok=True)
        file = (data / "lock").open("w")
    except OSError as error:
        raise CapacityError(
            f"无法使用数据文件夹 {data}（{error.strerror}）：请用 --data 指定一个可写的文件夹。",
            f"The data folder {data} cannot be used ({error.strerror}): name one that can be written with --data.",
        ) from error
    try:
        import fcntl
    except ImportError:  # Windows: nothing of the kind; starting twice is then up to the user
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise CapacityError(
            f"另一个服务正在使用数据文件夹 {data}：请关闭它，或用 --data 指定另一个文件夹。",
            f"Another server uses the data folder {data}: close it, or name another folder with --data.",
        ) from None
    except OSError:  # a file system without locks
        return file
    return file
