"""The file of the queue when the disk is full, the file is damaged or the clock is wrong."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cogvideo.errors import CapacityError
from cogvideo.jobs.artifacts import JobArtifacts
from cogvideo.jobs.store import Record, Store
from tests.support.fakes import PlainFilm, moving_square


def record(name: str, created: float = 1.0) -> Record:
    return Record(name, "owner", {"prompt": "猫" * 400}, "queued", created, None, 0)


def test_a_full_disk_refuses_whole_entries_and_takes_more_once_there_is_room(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "jobs.sqlite")) as store:
        store.add(record("first"))
        pages = store._base.execute("PRAGMA page_count").fetchone()[0]
        store._base.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to be out of room
        with pytest.raises(CapacityError, match="database or disk is full"):
            for number in range(100):
                store.add(record(f"more-{number}"))
        taken = store.with_status(["queued"])
        assert [store.log(job.id)[0].kind for job in taken] == ["queued"] * len(taken)
        with pytest.raises(CapacityError):
            for _ in range(100):
                store.move("first", 2.0, "running", {"words": "猫" * 4000})
        store._base.execute("PRAGMA max_page_count = 1000000")
        store.add(record("last"))
        assert [job.id for job in store.with_status(["queued", "running"])] == [*(job.id for job in taken), "last"]


@pytest.mark.parametrize("content", [b"no database at all" * 400, b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_file_is_named_with_a_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(content)
    with pytest.raises(CapacityError, match=r"jobs.sqlite is damaged .*move the whole data folder away"):
        Store(tmp_path / "jobs.sqlite")


def test_a_page_of_rubbish_is_found_at_the_start_and_not_later(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    with closing(Store(path)) as store:
        for number in range(40):
            store.add(record(f"{number}"))
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xaa" * 4096 + whole[8192:])
    with pytest.raises(CapacityError, match="damaged"):
        Store(path)


def test_a_torn_write_ahead_log_loses_at_most_its_end(tmp_path: Path) -> None:
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


def test_the_queue_keeps_its_order_when_the_clock_goes_back(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "jobs.sqlite")) as store:
        for name, created in (("first", 2000.0), ("second", 1000.0), ("third", 1500.0)):
            store.add(record(name, created))
        assert [job.id for job in store.with_status(["queued"])] == ["first", "second", "third"]
        assert [job.id for job in store.of_owner("owner", 2)] == ["third", "second"]


def test_a_read_only_file_is_a_sentence(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "jobs.sqlite")) as store:
        store._base.execute("PRAGMA query_only = 1")  # what a remount does, for root too
        with pytest.raises(CapacityError, match="readonly database"):
            store.keep("speed", "1")
    with pytest.raises(CapacityError, match="cannot be written"):
        Store(tmp_path / "missing" / "jobs.sqlite")
    with pytest.raises(sqlite3.ProgrammingError):  # a mistake of ours stays one
        store.keep("speed", "1")


def test_results_that_do_not_fit_are_a_sentence_and_leave_nothing(tmp_path: Path) -> None:
    folder = JobArtifacts(tmp_path / "job", PlainFilm)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / ".key-0.webp").mkdir()  # cannot be written to, whoever asks
    with pytest.raises(CapacityError, match="data folder"):
        folder.keyframe(0, moving_square(2, 1)[0])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CapacityError, match="data folder"):
        JobArtifacts(tmp_path / "file" / "job", PlainFilm).clip("final", moving_square(2, 1), None, None)  # type: ignore[arg-type]
