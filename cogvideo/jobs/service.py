"""The job service: a bounded fair queue, one worker that owns the models, and a log on disk that survives restarts.

A client submits a `VideoRequest` with its key and gets a random job id. The id allows watching a job; the key allows
stopping and deleting it. A factory creates the pipeline on first use.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cogvideo.config import Preset
from cogvideo.errors import RequestError
from cogvideo.jobs.artifacts import OpenVideo
from cogvideo.jobs.eta import ThroughputStore
from cogvideo.jobs.model_registry import ModelEntry, ModelRegistry, Pipeline, available_models
from cogvideo.jobs.model_service import ModelService
from cogvideo.jobs.queue import JobQueue, Limits
from cogvideo.jobs.records import LoggedEntry
from cogvideo.jobs.repository import JobRepository
from cogvideo.jobs.state import JobState
from cogvideo.jobs.store import Store, lock_folder
from cogvideo.jobs.worker import Worker, WorkerCalls
from cogvideo.media.video import VideoWriter
from cogvideo.messages import message
from cogvideo.request import VideoRequest, tokens_per_stage
from cogvideo.runtime.memory_presets import PlacementOptions
from cogvideo.runtime.model_selection import default_model
from cogvideo.token_frames import TokenFrames

Result = TypeVar("Result")

FORBIDDEN = RequestError(*message("service.not_owner"))


class JobService:
    """All jobs of one server and one accelerator.

    Args:
        data: folder for database and files, created if missing; used by one server at a time (else CapacityError)
        preset: the default model
        pipeline: creates the pipeline of the default model, for the first prompt or for `start(preload=True)`
        open_writer: opens video files
        limits: capacity, retention and timeouts
        others: models besides `preset`; only one model has its weights loaded at a time
    """

    def __init__(
        self,
        data: Path,
        preset: Preset,
        pipeline: Callable[[], Pipeline],
        open_writer: OpenVideo = VideoWriter,
        limits: Limits | None = None,
        others: Sequence[ModelEntry] = (),
    ) -> None:
        self.preset = preset
        self.limits = limits or Limits()
        self.results = data / "results"
        default = ModelEntry(preset, lambda _: pipeline(), lambda: None)
        self._registry = ModelRegistry([default, *others])
        self._lock_file = lock_folder(data)
        self._store = Store(data / "jobs.sqlite")
        self._throughput = ThroughputStore(self._store)
        self._repository = JobRepository(self._store, self.results, open_writer, self._registry)
        self._queue = JobQueue(self._store, self._repository, self.limits)
        self._calls = WorkerCalls(self._queue.wake)
        self._thread: threading.Thread | None = None
        self.models = ModelService(self._registry, self._throughput, self._run_on_worker)

    # Lifetime.

    def start(self, preload: bool = False) -> None:
        """Start the worker. With `preload` it loads the default model before the first job."""
        worker = Worker(self._queue, self._repository, self._registry, self._throughput, self._calls, self.limits)
        model = self.preset.name if preload else None
        self._thread = threading.Thread(target=worker.run, args=(model,), name="cogvideo-worker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the worker. Queued jobs stay for the next start; the running one is marked interrupted."""
        self._queue.close()
        if self._thread:
            self._thread.join(self.limits.worker_stop_seconds)
        self._store.close()
        self._lock_file.close()

    def secret(self, name: str) -> str:
        """Return a random secret of this data folder, the same after a restart."""
        return self._store.setting(f"secret:{name}", lambda: secrets.token_urlsafe(24))

    def _run_on_worker(self, call: Callable[[], Result]) -> Result:
        """Run a call on the worker's thread, or here if the worker has not started."""
        return call() if self._thread is None else self._calls.submit(call, self.limits.call_timeout_seconds)

    # Changes.

    def submit(
        self,
        request: VideoRequest,
        key: str,
        embed_settings: bool = True,
        model: str | None = None,
        memory: str | None = None,
    ) -> JobState:
        """Check a request and queue it. Raises RequestError and CapacityError; then nothing is stored.

        Args:
            request: prompt and options
            key: secret of the client, which owns the job
            embed_settings: whether the settings are written into the video file
            model: None for the default model
            memory: memory preset to run under; None for the one that fits
        """
        return self.submit_all([request], key, embed_settings, model, memory)[0]

    def submit_all(
        self,
        requests: Sequence[VideoRequest],
        key: str,
        embed_settings: bool = True,
        model: str | None = None,
        memory: str | None = None,
    ) -> list[JobState]:
        """Queue all of `requests`, or none. Arguments and errors as in `submit`."""
        owner = owner_of(key)
        states = [self._new(request, embed_settings, model or self.preset.name, memory) for request in requests]
        self._queue.add(states, owner)
        return [self.state(state.id) for state in states]

    def _new(self, request: VideoRequest, embed_settings: bool, model: str, memory: str | None) -> JobState:
        checked = self.models.check_inputs(request, model, memory)
        return JobState(
            id=secrets.token_urlsafe(16),
            status="queued",
            request=replace(request, prompt=checked.text),
            created=time.time(),
            notes=tuple((note.zh, note.en) for note in checked.notes),
            embed_settings=embed_settings,
            model=model,
            memory=memory,
            tokens_total=sum(tokens_per_stage(self.models.entry(model).preset.model, request).values()),
        )

    def stop(self, job: str, key: str, after_round: bool = False) -> None:
        """Stop a job within one token, or after the current round. Completed parts are kept. Raises RequestError."""
        self._check_owner(job, key)
        self._queue.stop(job, after_round)

    def delete(self, job: str, key: str) -> None:
        """Remove a job with its files. Raises RequestError if it is running or belongs to another key."""
        self._check_owner(job, key)
        self._queue.delete(job)

    def resubmit(self, job: str, key: str) -> JobState:
        """Submit a job with the same settings, owned by `key`."""
        state = self.state(job)
        return self.submit(state.request, key, state.embed_settings, state.model, state.memory)

    def _check_owner(self, job: str, key: str) -> None:
        self._repository.record(job)
        if not self.is_owner(job, key):
            raise FORBIDDEN

    # Queries.

    def state(self, job: str) -> JobState:
        """Return the current state of a job. Raises RequestError if there is none."""
        return self._queue.state(job) or self._repository.state(self._repository.record(job))

    def is_owner(self, job: str, key: str) -> bool:
        """Return whether the job belongs to `key`."""
        try:
            return secrets.compare_digest(self._repository.record(job).owner, owner_of(key))
        except RequestError:  # no such job, or not a key
            return False

    def log(self, job: str, after: int = 0) -> list[LoggedEntry]:
        """Return the job's log entries with seq > `after`."""
        return self._store.log(job, after)

    def history(self, key: str, limit: int = 24) -> list[JobState]:
        """Return the newest jobs of `key`, newest first."""
        states = []
        for record in self._store.of_owner(owner_of(key), limit):
            with suppress(RequestError):  # deleted meanwhile
                states.append(self.state(record.id))
        return states

    async def follow(
        self, job: str, poll_seconds: float = 0.1, heartbeat_seconds: float | None = None
    ) -> AsyncIterator[JobState]:
        """Yield the job's state now and after every change, polled every `poll_seconds`; end with a final state.

        With `heartbeat_seconds` an unchanged state is repeated after that time.
        """
        last: JobState | None = None
        last_time = 0.0
        while True:
            state = self.state(job)
            now = time.monotonic()
            if state != last or (heartbeat_seconds is not None and now - last_time >= heartbeat_seconds):
                yield state
                last, last_time = state, now
            if not state.active:
                return
            await asyncio.sleep(poll_seconds)

    def queue_length(self) -> int:
        """Return the number of running and queued jobs."""
        return len(self._queue)

    def tokens(self, job: str, draft: int = 0) -> TokenFrames | None:
        """Return the stored tokens of one draft, before super-resolution. Returns None if there are none."""
        return self._repository.tokens(job, draft)

    def file(self, job: str, name: str) -> Path | None:
        """Return the path of one of a job's files. Returns None if there is none; both may be any string.

        The gif and the zip of the frames are generated on first request.
        """
        return self._repository.file(job, name)


def open_jobs(
    data: Path, model: str | None, limits: Limits | None = None, placement: PlacementOptions | None = None
) -> JobService:
    """Open the job service with real pipelines. `model` None: the best model that can run here."""
    placement = placement or PlacementOptions()
    first, *others = available_models(model or default_model(placement.device), placement)
    return JobService(data, first.preset, lambda: first.make(None), limits=limits, others=[first, *others])


def new_key() -> str:
    """Return a random key for one client, which owns the jobs submitted with it."""
    return secrets.token_urlsafe(24)


def owner_of(key: str) -> str:
    """Return the hash of a key, as stored. Raises RequestError if the key is too short to be a secret."""
    if len(key) < 16:
        raise RequestError(*message("service.key_too_short"))
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
