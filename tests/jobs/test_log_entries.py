"""The rows of a job's log: what the first release wrote is read, and the same is written."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cogvideo.jobs.log_entries import (
    Failed,
    Finished,
    Interrupted,
    KeyframeStored,
    LogEntry,
    Queued,
    RoundStored,
    Started,
    Stopped,
    VideoFiles,
    entry_from_json,
)
from cogvideo.jobs.records import JobSettings, Record
from cogvideo.jobs.state import JobState, PreviewImages, apply_log_entry
from cogvideo.jobs.store import Store
from cogvideo.request import VideoRequest
from cogvideo.web.job_json import screen_value
from tests.support.fakes import PRESET

CLIP = {"video": "final.mp4", "strip": "final-strip.webp", "poster": "final-poster.webp", "frames": 9}
FILES = VideoFiles("final.mp4", "final-strip.webp", "final-poster.webp", 9)
ROWS: list[tuple[str, dict[str, Any], LogEntry]] = [
    ("queued", {}, Queued()),
    ("running", {}, Started()),
    ("keyframe", {"index": 2, "file": "key-2.webp"}, KeyframeStored(2, "key-2.webp")),
    ("level", {"level": 1, **CLIP}, RoundStored(1, FILES)),
    ("done", {**CLIP, "done": 576}, Finished(FILES, 576)),
    ("stopped", {"done": 0}, Stopped(tokens_done=0)),
    ("stopped", {**CLIP, "done": 64}, Stopped(FILES, 64)),
    ("stopped", {"error": ["无人", "no page"], "done": 0}, Stopped(None, 0, ("无人", "no page"))),
    ("interrupted", {}, Interrupted()),
    ("interrupted", CLIP, Interrupted(FILES)),
    ("failed", {"error": ["错", "wrong"], "smaller": None, "done": 64}, Failed(("错", "wrong"), None, 64)),
    (
        "failed",
        {**CLIP, "error": ["满", "full"], "smaller": "16g", "done": 64},
        Failed(("满", "full"), FILES, 64, "16g"),
    ),
]


@pytest.mark.parametrize(("kind", "data", "entry"), ROWS)
def test_row_of_first_release_is_read_and_written_unchanged(kind: str, data: dict[str, Any], entry: LogEntry) -> None:
    assert entry_from_json(kind, data) == entry
    assert entry.kind == kind
    assert json.loads(json.dumps(entry.to_json())) == data
    assert list(entry.to_json()) == list(data)


def test_failed_row_without_memory_preset_is_read() -> None:
    assert entry_from_json("failed", {"error": ["错", "wrong"], "done": 3}) == Failed(("错", "wrong"), None, 3)


def test_entry_kind_of_newer_version_is_skipped(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "jobs.sqlite")) as store:
        store.add(Record("job", "owner", "{}", "queued", 1.0, None, 0))
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as other:
            other.execute("INSERT INTO log (job, at, kind, data) VALUES ('job', 2.0, 'audio', '{\"file\": \"a.wav\"}')")
            other.commit()
        store.start("job", 3.0)
        assert [logged.entry for logged in store.log("job")] == [Queued(), Started()]


def test_settings_row_has_keys_of_first_release_and_is_read_without_model() -> None:
    request = VideoRequest("一只熊猫", 7, 9, 2.0, superres=False)
    settings = JobSettings(request, (("改", "changed"),), False, "mini", "cpu")
    row = json.loads(settings.to_json())
    assert set(row) == {"request", "notes", "comment", "model", "memory"}
    assert (row["request"]["frames"], row["request"]["seconds"], row["comment"]) == (9, 2.0, False)
    assert JobSettings.from_json(settings.to_json()) == settings
    del row["model"], row["memory"]
    assert JobSettings.from_json(json.dumps(row)) == JobSettings(request, (("改", "changed"),), False, "", None)


def test_final_entry_clears_progress_and_keeps_tokens_of_running_job() -> None:
    running = JobState("job", "running", VideoRequest("熊"), 1.0, tokens_done=64, tokens_total=576, stage="keyframes")
    running = apply_log_entry(running, KeyframeStored(0, "key-0.webp"))
    interrupted = apply_log_entry(running, Interrupted(FILES))
    assert (interrupted.status, interrupted.tokens_done, interrupted.stage) == ("interrupted", 64, None)
    assert (interrupted.video, interrupted.num_frames, interrupted.keyframes) == ("final.mp4", 9, ("key-0.webp",))
    assert apply_log_entry(running, Finished(FILES, 64)).tokens_done == 576


def test_preview_is_sent_to_page_as_index_followed_by_images() -> None:
    state = JobState("job", "running", VideoRequest("熊"), 1.0, preview=PreviewImages(2, ("data:a", "data:b")))
    assert screen_value(state, PRESET, "mini")["painting"] == (2, "data:a", "data:b")
