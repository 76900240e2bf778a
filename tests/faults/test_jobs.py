"""The queue when the disk is full, the clock is set, a library ends the process, or a killed server left its traces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cogvideo.errors import CapacityError
from cogvideo.jobs import service as module
from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import JobService
from tests.jobs.test_service import KEY, PATIENCE, REQUEST, _open, finished, kinds, until
from tests.support.fakes import FakePipeline, killed

QUICK = Limits(preview_seconds=0, disk_full_retry_seconds=0.01)
DAY = 86400.0


@contextmanager
def unwritable(jobs: JobService) -> Iterator[None]:
    """Inside the block the file of the queue can be read alone, as on a full disk or after a remount."""

    def only_reading(yes: bool) -> None:
        with jobs._store._lock:
            jobs._store._base.execute(f"PRAGMA query_only = {int(yes)}")

    only_reading(True)
    try:
        yield
    finally:
        only_reading(False)


def wait_for(log: pytest.LogCaptureFixture, words: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while words not in log.text:
        assert time.monotonic() < deadline, log.text


@pytest.fixture
def jobs(tmp_path: Path, fake: FakePipeline) -> Iterator[JobService]:
    jobs = _open(tmp_path, fake, QUICK)
    yield jobs
    jobs.close()


def test_queue_pauses_while_disk_is_full_and_loses_no_job(
    jobs: JobService, fake: FakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    fake.open()
    waiting = [jobs.submit(REQUEST, KEY).id for _ in range(2)]
    with unwritable(jobs):
        jobs.start()
        wait_for(caplog, "queue is paused")
        with pytest.raises(CapacityError, match="cannot be written"):
            jobs.submit(REQUEST, KEY)
        assert fake.started == [] and jobs.queue_length() == 2
    assert [until(jobs, job, finished).status for job in waiting] == ["done", "done"]
    assert len(fake.started) == 2


def test_disk_full_during_job_fails_it_and_next_job_runs(
    jobs: JobService, fake: FakePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.start()
    job, following = jobs.submit(REQUEST, KEY).id, jobs.submit(REQUEST, KEY).id
    fake.step(10)
    until(jobs, job, lambda view: view.round == 0)
    with unwritable(jobs):
        fake.step()
        wait_for(caplog, "queue is paused")
        assert jobs.state(job).status == "running"  # its end is not written down yet, so nothing else begins
    view = until(jobs, job, finished)
    assert view.status == "failed" and view.error and "disk space" in view.error[1]
    assert (view.video, view.num_frames) == ("kept.mp4", 9)  # the files were there before the note
    fake.open()
    assert until(jobs, following, finished).status == "done"


def test_unwritable_keyframe_fails_job(jobs: JobService, fake: FakePipeline) -> None:
    jobs.start()
    job, following = jobs.submit(REQUEST, KEY).id, jobs.submit(REQUEST, KEY).id
    folder = jobs.results / job
    (folder / ".key-0.webp").mkdir(parents=True)  # nothing can be written there, whoever asks
    fake.open()
    view = until(jobs, job, finished)
    assert view.status == "failed" and view.error and "disk space" in view.error[1]
    assert until(jobs, following, finished).status == "done"


def test_delete_on_full_disk_removes_files(jobs: JobService, fake: FakePipeline) -> None:
    fake.open()
    jobs.start()
    job = jobs.submit(REQUEST, KEY).id
    until(jobs, job, finished)
    with unwritable(jobs), pytest.raises(CapacityError):
        jobs.delete(job, KEY)
    assert not (jobs.results / job).exists()
    jobs.delete(job, KEY)
    assert jobs.history(KEY) == []


def test_submit_all_on_full_disk_stores_none(jobs: JobService) -> None:
    with unwritable(jobs), pytest.raises(CapacityError):
        jobs.submit_all([REQUEST, REQUEST], KEY)
    assert jobs.queue_length() == 0 and jobs.history(KEY) == []
    taken = jobs.submit_all([REQUEST, REQUEST], KEY)
    assert [view.id for view in jobs.history(KEY)] == [view.id for view in taken[::-1]]


def test_system_exit_fails_one_job(jobs: JobService, fake: FakePipeline) -> None:
    fake.open()
    fake.fail = SystemExit("I have had enough")  # type: ignore[assignment]
    jobs.start()
    view = until(jobs, jobs.submit(REQUEST, KEY).id, finished)
    assert view.status == "failed" and view.error and "SystemExit" in view.error[1]
    fake.fail = None
    assert until(jobs, jobs.submit(REQUEST, KEY).id, finished).status == "done"


@pytest.mark.parametrize("days", [40, -40])
def test_clock_change_keeps_videos_and_order(
    tmp_path: Path, fake: FakePipeline, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    fake.open()
    jobs = _open(tmp_path, fake, QUICK)
    jobs.start()
    before = jobs.submit(REQUEST, KEY).id
    until(jobs, before, finished)
    now = time.time
    monkeypatch.setattr(module.time, "time", lambda: now() + days * DAY)
    after = jobs.submit(REQUEST, KEY).id
    assert until(jobs, after, finished).status == "done"
    assert [view.id for view in jobs.history(KEY)] == [after, before]
    jobs.close()
    jobs = _open(tmp_path, fake, QUICK)  # a start believes the clock
    assert [view.id for view in jobs.history(KEY)] == ([after] if days > 0 else [after, before])
    jobs.close()


def test_start_removes_partial_files_of_killed_server(tmp_path: Path) -> None:
    hung = FakePipeline()
    jobs = _open(tmp_path, hung, QUICK)
    jobs.start()
    job = jobs.submit(REQUEST, KEY).id
    hung.step(10)
    until(jobs, job, lambda view: view.round == 0)
    with killed(jobs):
        (jobs.results / job / ".0123456789abcdef.part.mp4").write_bytes(b"half")
        following = _open(tmp_path, FakePipeline())
    assert kinds(following, job)[-1] == "interrupted"
    assert not list((following.results / job).glob(".*"))
    assert following.file(job, "level-0.mp4") is not None
    following.close()


def test_invalid_data_folder_is_refused(tmp_path: Path, fake: FakePipeline) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CapacityError, match=r"cannot be used .*--data"):
        _open(tmp_path / "file", fake)


def test_memory_error_fails_job_with_message(jobs: JobService, fake: FakePipeline) -> None:
    fake.open()
    fake.fail = MemoryError()
    jobs.start()
    view = until(jobs, jobs.submit(REQUEST, KEY).id, finished)
    assert view.status == "failed" and view.error and "Out of memory" in view.error[1]
