"""The file of the queue when the disk is full, the file is damaged or the clock is wrong."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cogvideo.errors import CapacityError
from cogvideo.jobs.artifacts import JobArtifacts
from cogvideo.jobs.log_entries import Failed
from cogvideo.jobs.records import Record
from cogvideo.jobs.store import Store
from tests.support.fakes import PlainFilm, moving_square


def record(name: str, created: float = 1.0) -> Record:
    return Record(name, "owner", "猫" * 400, "queued", created, None, 0)


def test_full_disk_refuses_whole_entries_until_there_is_room(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "jobs.sqlite")) as store:
        store.add(record("first"))
        pages = store._base.execute("PRAGMA page_count").fetchone()[0]
        store._base.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to be out of room
        with pytest.raises(CapacityError, match="database or disk is full"):
            for number in range(100):
                store.add(record(f"more-{number}"))
        taken = store.with_status(["queued"])
        assert [store.log(job.id)[0].entry.kind for job in taken] == ["queued"] * len(taken)
        with pytest.raises(CapacityError):
            for _ in range(100):
                store.append("first", 2.0, Failed(("猫" * 4000, "")))
        store._base.execute("PRAGMA max_page_count = 1000000")
        store.add(record("last"))
        assert [job.id for job in store.with_status(["queued", "running"])] == [*(job.id for job in taken), "last"]


@pytest.mark.parametrize("content", [b"no database at all" * 400, b"SQLite format 3\0" + bytes(4000)])
def test_damaged_database_error_names_file_and_fix(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(content)
    with pytest.raises(CapacityError, match=r"jobs.sqlite is damaged .*Move the whole data folder away"):
        Store(tmp_path / "jobs.sqlite")


def test_damaged_page_is_detected_on_open(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with closing(Store(path)) as store:
        for number in range(40):
            store.add(record(f"{number}"))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xaa" * 4096 + whole[8192:])
    with pytest.raises(CapacityError, match="damaged"):
        Store(path)


def test_truncated_wal_loses_only_its_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "jobs.sqlite")
    for number in range(6):
        store.add(record(f"{number}"))
    whole, log = (tmp_path / "jobs.sqlite").read_bytes(), (tmp_path / "jobs.sqlite-wal").read_bytes()
    store.close()
    found = set()
    for cut in (*range(0, len(log), max(1, len(log) // 30)), len(log)):
        torn = tmp_path / f"torn-{cut}"
        torn.mkdir()
        (torn / "jobs.sqlite").write_bytes(whole)
        (torn / "jobs.sqlite-wal").write_bytes(log[:cut])
        with closing(Store(torn / "jobs.sqlite")) as reopened:
            names = [job.id for job in reopened.with_status(["queued"])]
            assert names == [f"{number}" for number in range(len(names))]
            assert all(len(reopened.log(name)) == 1 for name in names)
        found.add(len(names))
    assert found == {0, 1, 2, 3, 4, 5, 6}


def test_order_of_jobs_ignores_clock(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "jobs.sqlite")) as store:
        for name, created in (("first", 2000.0), ("second", 1000.0), ("third", 1500.0)):
            store.add(record(name, created))
        assert [job.id for job in store.with_status(["queued"])] == ["first", "second", "third"]
        assert [job.id for job in store.of_owner("owner", 2)] == ["third", "second"]


def test_read_only_database_raises_capacity_error(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "jobs.sqlite")) as store:
        store._base.execute("PRAGMA query_only = 1")  # what a remount does, for root too
        with pytest.raises(CapacityError, match="readonly database"):
            store.set_setting("speed", "1")
    with pytest.raises(CapacityError, match="cannot be written"):
        Store(tmp_path / "missing" / "jobs.sqlite")
    with pytest.raises(sqlite3.ProgrammingError):  # a mistake of ours stays one
        store.set_setting("speed", "1")


def test_unwritable_results_raise_capacity_error(tmp_path: Path) -> None:
    folder = JobArtifacts(tmp_path / "job", PlainFilm)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / ".key-0.webp").mkdir()  # cannot be written to, whoever asks
    with pytest.raises(CapacityError, match="data folder"):
        folder.write_keyframe(0, moving_square(2, 1)[0])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CapacityError, match="data folder"):
        JobArtifacts(tmp_path / "file" / "job", PlainFilm).write_video("final", moving_square(2, 1), None, None)  # type: ignore[arg-type]
