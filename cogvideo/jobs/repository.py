"""What is kept of all jobs: rows and log in the store, files in a folder each, and how long they stay. No torch.

In: rows of the store. Out: views, files, and the ids of what is too old or too much.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from cogvideo.errors import CapacityError, RequestError
from cogvideo.jobs.artifacts import EXPORTS, JobArtifacts, OpenVideo
from cogvideo.jobs.model_registry import ModelRegistry
from cogvideo.jobs.state import ACTIVE, FINAL, JobState, apply_log_entry
from cogvideo.jobs.store import Entry, Record, Store
from cogvideo.request import request_from_dict, request_to_dict, tokens_per_stage
from cogvideo.token_frames import TokenFrames

CLOCK_TRUST = 3600.0
"""Seconds by which the clock may be set before age stops to count; it counts again after a restart."""

GONE = RequestError(
    "没有找到这段视频：它可能已被删除，或链接不完整。",
    "There is no such video: it may have been deleted, or the link is incomplete.",
)


class JobRepository:
    """All jobs on disk. `registry`: knows their models, whose sizes their tokens follow from."""

    def __init__(self, store: Store, results: Path, open_film: OpenVideo, registry: ModelRegistry) -> None:
        self.results = results
        self._store, self._open_film, self._registry = store, open_film, registry
        self._clock = _clock()
        self._exporting = threading.Lock()

    # One job.

    def record(self, job: str) -> Record:
        """The job's row. Raises RequestError where there is none, whatever the string holds."""
        record = self._store.job(job) if plain(job) else None
        if record is None:
            raise GONE
        return record

    def state(self, record: Record) -> JobState:
        """The view of a job, from its row and its log alone."""
        stored = record.request
        request = request_from_dict(stored["request"])
        view = JobState(
            id=record.id,
            status=record.status,
            request=request,
            created=record.created,
            notes=tuple((zh, en) for zh, en in stored["notes"]),
            comment=stored["comment"],
            model=stored.get("model") or self._registry.own,
            memory=stored.get("memory"),
        )
        view = replace(view, total=sum(tokens_per_stage(self._registry.preset(view.model).model, request).values()))
        for entry in self._store.log(record.id):
            view = apply_log_entry(view, entry.kind, entry.data)
        return view

    def artifacts(self, job: str) -> JobArtifacts:
        return JobArtifacts(self.results / job, self._open_film)

    def tokens(self, job: str, draft: int) -> TokenFrames | None:
        """The frames that a job has drawn, before super-resolution; None where it kept none."""
        return self.artifacts(job).tokens(draft) if plain(job) else None

    def file(self, job: str, name: str) -> Path | None:
        """The path of one of a job's files; None where there is none, whatever the two strings hold.

        A gif and a zip of the frames are made when they are first asked for.
        """
        folder = self.results / job
        if not plain(job) or not folder.is_dir():
            return None
        if name in EXPORTS:
            return self._export(job, name)
        return next((path for path in folder.iterdir() if path.name == name and not name.startswith(".")), None)

    def _export(self, job: str, name: str) -> Path | None:
        record = self._store.job(job)
        if record is None or record.status not in FINAL:
            return None
        view = self.state(record)
        folder = self.artifacts(job)
        with self._exporting:  # once, however many ask
            path = folder.export(name, view.request, comment(view))
        self._store.resize(job, folder.size())
        return path

    def delete(self, job: str) -> None:
        """Removes a job with its files. Raises CapacityError where the disk does not even take that."""
        try:
            self._store.delete(job)
        except CapacityError:  # a full disk has no room for the note either: the files go first
            shutil.rmtree(self.results / job, ignore_errors=True)
            self._store.delete(job)
        shutil.rmtree(self.results / job, ignore_errors=True)

    # All of them.

    def recover(self) -> list[Record]:
        """After a restart: a running job was interrupted, strangers' folders go. Returns waiting ones, oldest first."""
        for record in self._store.with_status(["running"]):
            kept = _last_clip(self._store.log(record.id))
            self.artifacts(record.id).clear()
            self._store.finish(record.id, time.time(), "interrupted", kept, self.artifacts(record.id).size())
        known = {record.id for record in self._store.with_status([*ACTIVE, *FINAL])}
        for folder in self.results.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        return self._store.with_status(["queued"])

    def outdated(self, keep_bytes: int, keep_seconds: float) -> list[str]:
        """Finished jobs that are too old, then the oldest ones until the rest fits.

        A clock that has jumped since the start says nothing of age: nobody's clips go because somebody sets it.
        """
        kept, gone = 0, []
        oldest = time.time() - keep_seconds if abs(_clock() - self._clock) < CLOCK_TRUST else 0.0
        for record in reversed(self._store.with_status(FINAL)):
            kept += record.bytes
            if kept > keep_bytes or (record.finished or record.created) < oldest:
                gone.append(record.id)
        return gone


def stored(view: JobState) -> dict[str, Any]:
    """What the row of a new job keeps of it."""
    kept = {name: getattr(view, name) for name in ("notes", "comment", "model", "memory")}
    return {"request": request_to_dict(view.request), **kept}


def comment(view: JobState) -> dict[str, Any] | None:
    """What is written into the video file; None where the person opted out."""
    if not view.comment:
        return None
    settings = request_to_dict(replace(view.request, initial_tokens=None))  # which the seed gives again
    return {"app": "CogVideo for everyone", "model": view.model, **settings}


def plain(name: str) -> bool:
    """Whether a stranger's string could be a job's id at all."""
    return 0 < len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)


def _last_clip(log: list[Entry]) -> dict[str, Any]:
    clips = [entry.data for entry in log if entry.kind == "level"]
    return {name: clips[-1][name] for name in ("video", "strip", "poster", "frames")} if clips else {}


def _clock() -> float:
    """What the clock on the wall is ahead of the one that nobody can set."""
    return time.time() - time.monotonic()
