"""All jobs on disk: rows and log in the store, one folder of files each, and their retention."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

from cogvideo.errors import CapacityError, RequestError
from cogvideo.jobs.artifacts import EXPORTS, JobArtifacts, OpenVideo
from cogvideo.jobs.log_entries import Interrupted, RoundStored, VideoFiles
from cogvideo.jobs.model_registry import ModelRegistry
from cogvideo.jobs.records import JobSettings, LoggedEntry, Record
from cogvideo.jobs.state import ACTIVE, FINAL, JobState, apply_log_entry
from cogvideo.jobs.store import Store
from cogvideo.media.metadata import Metadata
from cogvideo.messages import message
from cogvideo.request import request_to_dict, tokens_per_stage
from cogvideo.token_frames import TokenFrames

CLOCK_TOLERANCE = 3600.0
"""Seconds the system clock may be off before videos no longer expire by age, until the next restart."""

NOT_FOUND = RequestError(*message("repository.no_such_video"))


class JobRepository:
    """All jobs on disk.

    Args:
        store: the job database
        results: folder with one subfolder per job
        open_writer: opens video files
        registry: the models, whose sizes determine the token counts
    """

    def __init__(self, store: Store, results: Path, open_writer: OpenVideo, registry: ModelRegistry) -> None:
        self.results = results
        self._store, self._open_writer, self._registry = store, open_writer, registry
        self._clock_offset = _clock_offset()
        self._exporting = threading.Lock()

    def record(self, job: str) -> Record:
        """Return the job's row. Raises RequestError if there is none; `job` may be any string."""
        record = self._store.job(job) if is_valid_id(job) else None
        if record is None:
            raise NOT_FOUND
        return record

    def state(self, record: Record) -> JobState:
        """Return the job's state, computed from its row and its log."""
        settings = JobSettings.from_json(record.settings)
        model = settings.model or self._registry.default
        state = JobState(
            id=record.id,
            status=record.status,
            request=settings.request,
            created=record.created,
            notes=settings.notes,
            embed_settings=settings.embed_settings,
            model=model,
            memory=settings.memory,
            tokens_total=sum(tokens_per_stage(self._registry.preset(model).model, settings.request).values()),
        )
        for logged in self._store.log(record.id):
            state = apply_log_entry(state, logged.entry)
        return state

    def artifacts(self, job: str) -> JobArtifacts:
        return JobArtifacts(self.results / job, self._open_writer)

    def tokens(self, job: str, draft: int) -> TokenFrames | None:
        """Return the stored tokens of one draft, before super-resolution. Returns None if there are none."""
        return self.artifacts(job).read_tokens(draft) if is_valid_id(job) else None

    def file(self, job: str, name: str) -> Path | None:
        """Return the path of one of a job's files. Returns None if there is none; both may be any string.

        The gif and the zip of the frames are generated on first request.
        """
        folder = self.results / job
        if not is_valid_id(job) or not folder.is_dir():
            return None
        if name in EXPORTS:
            return self._export(job, name)
        return next((path for path in folder.iterdir() if path.name == name and not name.startswith(".")), None)

    def _export(self, job: str, name: str) -> Path | None:
        record = self._store.job(job)
        if record is None or record.status not in FINAL:
            return None
        state = self.state(record)
        artifacts = self.artifacts(job)
        with self._exporting:  # concurrent requests generate it once
            path = artifacts.export(name, state.request, video_metadata(state))
        self._store.set_size(job, artifacts.size())
        return path

    def delete(self, job: str) -> None:
        """Remove a job with its files. Raises CapacityError if the database is not writable."""
        try:
            self._store.delete(job)
        except CapacityError:  # a full disk has no room for the transaction either: remove the files first
            shutil.rmtree(self.results / job, ignore_errors=True)
            self._store.delete(job)
        shutil.rmtree(self.results / job, ignore_errors=True)

    def recover(self) -> list[Record]:
        """Repair the database after a restart and return the queued jobs, oldest first.

        Running jobs become interrupted; folders without a job are removed.
        """
        for record in self._store.with_status(["running"]):
            self.artifacts(record.id).remove_partial_files()
            ending = Interrupted(_last_video(self._store.log(record.id)))
            self._store.finish(record.id, time.time(), ending, self.artifacts(record.id).size())
        known = {record.id for record in self._store.with_status([*ACTIVE, *FINAL])}
        for folder in self.results.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        return self._store.with_status(["queued"])

    def expired(self, max_bytes: int, max_seconds: float) -> list[str]:
        """Return the finished jobs to delete: those older than `max_seconds`, then the oldest beyond `max_bytes`.

        Age is ignored if the system clock was changed by more than CLOCK_TOLERANCE since the start.
        """
        total, expired = 0, []
        clock_is_steady = abs(_clock_offset() - self._clock_offset) < CLOCK_TOLERANCE
        oldest = time.time() - max_seconds if clock_is_steady else 0.0
        for record in reversed(self._store.with_status(FINAL)):
            total += record.bytes
            if total > max_bytes or (record.finished or record.created) < oldest:
                expired.append(record.id)
        return expired


def video_metadata(state: JobState) -> Metadata | None:
    """Return the settings to embed in the video file. Returns None if the user opted out."""
    if not state.embed_settings:
        return None
    settings = request_to_dict(replace(state.request, initial_tokens=None))  # the seed determines the tokens
    return {"app": "CogVideo for everyone", "model": state.model, **settings}


def is_valid_id(text: str) -> bool:
    """Return whether a string from outside has the form of a job id."""
    return 0 < len(text) <= 64 and all(c.isascii() and (c.isalnum() or c in "-_") for c in text)


def _last_video(log: list[LoggedEntry]) -> VideoFiles | None:
    rounds = [logged.entry for logged in log if isinstance(logged.entry, RoundStored)]
    return rounds[-1].files if rounds else None


def _clock_offset() -> float:
    """Return the offset of the system clock from the monotonic clock, in seconds."""
    return time.time() - time.monotonic()
