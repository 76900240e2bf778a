"""The films of a job: encoded while what comes next is drawn, none of them twice, and none of their troubles lost."""

from __future__ import annotations

import errno
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cogvideo.events import Frames
from cogvideo.jobs.artifacts import OpenVideo
from cogvideo.jobs.log_entries import RoundStored
from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import JobService
from tests.jobs.test_service import KEY, REQUEST, finished, kinds, until
from tests.support.fakes import PRESET, FakePipeline, PlainFilm


def begun(tmp_path: Path, fake: FakePipeline, film: OpenVideo) -> JobService:
    jobs = JobService(tmp_path, PRESET, lambda: fake, film, Limits(preview_seconds=0))
    jobs.start()
    return jobs


@pytest.mark.parametrize("full", [False, True])
def test_next_round_is_generated_while_last_one_is_encoded(tmp_path: Path, fake: FakePipeline, full: bool) -> None:
    encode = threading.Event()

    class Slow(PlainFilm):
        def _encode(self) -> None:
            assert encode.wait(20)
            super()._encode()
            if full and self.path.name == "level-0.mp4":
                self._error = OSError(errno.ENOSPC, "No space left on device")

    jobs = begun(tmp_path, fake, Slow)
    job = jobs.submit(replace(REQUEST, num_frames=17), KEY).id
    fake.step(11)
    view = until(jobs, job, lambda view: view.tokens_done == 9 * 64)  # the second level is drawn
    assert (view.round, view.video) == (-1, None)  # and the first one not encoded
    encode.set()
    fake.open()
    view = until(jobs, job, finished)
    if full:
        assert view.status == "failed" and view.error and "No space left" in view.error[1]
    else:
        assert (view.status, view.video, view.num_frames) == ("done", "final.mp4", 17)
        assert [row.entry.round for row in jobs.log(job) if isinstance(row.entry, RoundStored)] == [0, 1, 2]
        assert kinds(jobs, job)[-1] == "done"
    jobs.close()


@pytest.mark.parametrize("superres", [False, True])
def test_each_video_is_encoded_once_and_upscaled_frames_one_by_one(
    tmp_path: Path, fake: FakePipeline, superres: bool
) -> None:
    added: dict[str, list[int]] = {}

    class Noted(PlainFilm):
        def add(self, frames: Frames) -> None:
            added.setdefault(self.path.name, []).append(len(frames))
            super().add(frames)

    fake.open()
    jobs = begun(tmp_path, fake, Noted)
    view = until(jobs, jobs.submit(replace(REQUEST, superres=superres), KEY).id, finished)
    assert (view.status, view.video, view.strip, view.num_frames) == ("done", "final.mp4", "final-strip.webp", 9)
    levels = {"level-0.mp4": [5], "level-1.mp4": [9]} if superres else {"level-0.mp4": [5]}
    assert added == {**levels, "final.mp4": [1] * 9 if superres else [9]}
    jobs.close()


@pytest.mark.parametrize("name", ["level-0.mp4", "level-1.mp4", "final.mp4"])
def test_encoder_disk_error_fails_job_in_any_round(tmp_path: Path, fake: FakePipeline, name: str) -> None:
    class Full(PlainFilm):
        def __init__(self, path: Path, *about: Any) -> None:
            super().__init__(path, *about)
            self._full = path.name == name

        def _encode(self) -> None:
            if self._full:
                self._error = OSError(errno.ENOSPC, "No space left on device")
            else:
                super()._encode()

    fake.open()
    jobs = begun(tmp_path, fake, Full)
    job = jobs.submit(replace(REQUEST, superres=True), KEY).id
    view = until(jobs, job, finished)
    assert view.status == "failed" and view.error and "No space left" in view.error[1]
    assert str(tmp_path) not in "".join(view.error)
    assert view.video == "kept.mp4"
    assert not list((jobs.results / job).glob(".*"))
    assert not (jobs.results / job / name).exists()
    jobs.close()
