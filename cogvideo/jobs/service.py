"""Wishes in, videos out: a bounded fair queue, one worker that owns the model, and a log that survives everything.

A `VideoRequest` goes in with the key of whoever asks; a random id comes out. Whoever has the id may watch; whoever has
the key may stop and delete. Nothing here imports torch: the pipeline is made by a factory, in the worker's thread.
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
from typing import TYPE_CHECKING, TypeVar

from cogvideo.config import Preset
from cogvideo.errors import RequestError
from cogvideo.events import Frames
from cogvideo.jobs.artifacts import OpenVideo
from cogvideo.jobs.artifacts import read_settings as read_settings
from cogvideo.jobs.eta import ThroughputStore
from cogvideo.jobs.model_registry import ModelEntry, ModelRegistry, Pipeline, available_models
from cogvideo.jobs.queue import JobQueue
from cogvideo.jobs.queue import Limits as Limits
from cogvideo.jobs.repository import JobRepository
from cogvideo.jobs.state import JobState
from cogvideo.jobs.store import Entry, Store, lock_folder
from cogvideo.jobs.worker import Worker, WorkerCalls
from cogvideo.media.video import VideoWriter
from cogvideo.request import VideoRequest, tokens_per_stage
from cogvideo.request import new_seed as new_seed
from cogvideo.runtime.model_selection import default_model
from cogvideo.token_frames import TokenFrames

if TYPE_CHECKING:
    from cogvideo.tokenizers.prompt import TokenizedPrompt

Result = TypeVar("Result")

FORBIDDEN = RequestError(
    "只有提交者可以停止或删除这段视频：您可以用同样的设置自己生成一段。",
    "Only the person who asked for this video may stop or delete it: make your own with the same settings.",
)


class JobService:
    """All jobs of one server and one accelerator.

    `data`: folder for the log and the clips, made where missing, used by one server at a time (CapacityError).
    `pipeline`: called once, for the first prompt or for `start(preload=True)`; only the worker lets it draw.
    `film`: what encodes the clips. `others`: models besides the `preset` that may be asked for. Only one model has its
    weights loaded at a time.
    """

    def __init__(
        self,
        data: Path,
        preset: Preset,
        pipeline: Callable[[], Pipeline],
        film: OpenVideo = VideoWriter,
        limits: Limits | None = None,
        others: Sequence[ModelEntry] = (),
    ) -> None:
        self.preset = preset
        own = ModelEntry(preset, lambda _: pipeline(), lambda: None)
        self._registry = ModelRegistry([own, *others])
        self.limits = limits or Limits()
        self.results = data / "results"
        self._lock_file = lock_folder(data)
        self._store = Store(data / "jobs.sqlite")
        self._speeds = ThroughputStore(self._store)
        self._archive = JobRepository(self._store, self.results, film, self._registry)
        self._queue = JobQueue(self._store, self._archive, self.limits)
        self._errands = WorkerCalls(self._queue.wake)
        self._thread: threading.Thread | None = None

    # Life of the server.

    def start(self, preload: bool = False) -> None:
        """Starts the worker; with `preload` it makes the pipeline before the first job asks for it."""
        worker = Worker(self._queue, self._archive, self._registry, self._speeds, self._errands, self.limits)
        first = self.preset.name if preload else None
        self._thread = threading.Thread(target=worker.work, args=(first,), name="cogvideo-worker", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the worker: waiting jobs stay in the queue for the next start, a running one is marked interrupted."""
        self._queue.close()
        if self._thread:
            self._thread.join(self.limits.worker_stop_seconds)
        self._store.close()
        self._lock_file.close()

    def secret(self, name: str) -> str:
        """A random secret of this data folder: the same after a restart, another one on another server."""
        return self._store.setting(f"secret:{name}", lambda: secrets.token_urlsafe(24))

    # What people do.

    def submit(
        self,
        request: VideoRequest,
        key: str,
        comment: bool = True,
        model: str | None = None,
        memory: str | None = None,
    ) -> JobState:
        """Checks the request and queues it. Raises RequestError and CapacityError; then nothing is stored.

        `model` None: the server's own. `memory`: the memory preset to run it under, None for what fits.
        """
        return self.submit_all([request], key, comment, model, memory)[0]

    def submit_all(
        self,
        requests: Sequence[VideoRequest],
        key: str,
        comment: bool = True,
        model: str | None = None,
        memory: str | None = None,
    ) -> list[JobState]:
        """As `submit`, all of `requests` or none."""
        owner = owner_of(key)
        views = [self._new(request, comment, model or self.preset.name, memory) for request in requests]
        self._queue.add(views, owner)
        return [self.state(view.id) for view in views]

    def _new(self, request: VideoRequest, comment: bool, model: str, memory: str | None) -> JobState:
        checked = self._registry.pipeline(model, memory).check_inputs(request)
        return JobState(
            id=secrets.token_urlsafe(16),
            status="queued",
            request=replace(request, prompt=checked.text),
            created=time.time(),
            notes=tuple((note.zh, note.en) for note in checked.notes),
            comment=comment,
            model=model,
            memory=memory,
            total=sum(tokens_per_stage(self.offer(model).preset.model, request).values()),
        )

    def stop(self, job: str, key: str, after_level: bool = False) -> None:
        """Stops the job within one token, or once the level being drawn is complete; what exists is kept."""
        self._demand(job, key)
        self._queue.stop(job, after_level)

    def delete(self, job: str, key: str) -> None:
        """Removes a job that is not running, with its files. Raises RequestError for others' and running jobs."""
        self._demand(job, key)
        self._queue.delete(job)

    def resubmit(self, job: str, key: str) -> JobState:
        """A new job with the same settings, for whoever asks."""
        view = self.state(job)
        return self.submit(view.request, key, view.comment, view.model, view.memory)

    def _demand(self, job: str, key: str) -> None:
        self._archive.record(job)
        if not self.is_owner(job, key):
            raise FORBIDDEN

    # What people see.

    def state(self, job: str) -> JobState:
        """The job as it is now. Raises RequestError where there is none."""
        return self._queue.view(job) or self._archive.state(self._archive.record(job))

    def is_owner(self, job: str, key: str) -> bool:
        """Whether the job belongs to `key`."""
        try:
            return secrets.compare_digest(self._archive.record(job).owner, owner_of(key))
        except RequestError:  # there is no such job, or no such key
            return False

    def log(self, job: str, after: int = 0) -> list[Entry]:
        """The job's log entries with seq > `after`."""
        return self._store.log(job, after)

    def history(self, key: str, limit: int = 24) -> list[JobState]:
        """The key's own jobs, newest first."""
        views = []
        for record in self._store.of_owner(owner_of(key), limit):
            with suppress(RequestError):  # deleted a moment ago
                views.append(self.state(record.id))
        return views

    async def follow(self, job: str, tick: float = 0.1, beat: float | None = None) -> AsyncIterator[JobState]:
        """Yields the job's view now and after every change, at most once per `tick`; ends with a final one.

        With `beat` an unchanged view comes again after so many seconds, as a sign of life.
        """
        last: JobState | None = None
        since = 0.0
        while True:
            view = self.state(job)
            now = time.monotonic()
            if view != last or (beat is not None and now - since >= beat):
                yield view
                last, since = view, now
            if not view.active:
                return
            await asyncio.sleep(tick)

    def queue_length(self) -> int:
        """Jobs running and waiting."""
        return len(self._queue)

    def tokens(self, job: str, draft: int = 0) -> TokenFrames | None:
        """The frames that a job has drawn, before super-resolution; None where it kept none."""
        return self._archive.tokens(job, draft)

    def file(self, job: str, name: str) -> Path | None:
        """The path of one of a job's files; None where there is none, whatever the two strings hold.

        A gif and a zip of the frames are made when they are first asked for.
        """
        return self._archive.file(job, name)

    # Its models.

    @property
    def offers(self) -> dict[str, ModelEntry]:
        """The models that may be asked for, by name, the server's own first."""
        return self._registry.offers

    def offer(self, model: str) -> ModelEntry:
        """The model of that name. Raises RequestError where this server does not know it."""
        return self._registry.offer(model)

    def preset_of(self, view: JobState) -> Preset:
        """The job's model; the server's own where it does not know that one any more."""
        return self._registry.preset(view.model)

    def memory_summary(self, model: str) -> tuple[str, str] | None:
        """The kind of device and the memory preset that fit the model; None where it cannot be made here."""
        return self._registry.held(model)

    def estimate(self, request: VideoRequest, model: str | None = None, memory: str | None = None) -> float | None:
        """Seconds that `request` would take once it runs, as far as speeds were measured."""
        return self._speeds.estimate(self.offer(model or self.preset.name).preset, request, memory)

    def tokenize_prompt(self, request: VideoRequest, model: str | None = None) -> TokenizedPrompt:
        """The prompt as the model reads it, piece by piece. Raises RequestError."""
        return self._registry.pipeline(model or self.preset.name).tokenize_prompt(request)

    def encode(self, picture: Frames, model: str | None = None) -> TokenFrames:
        """A picture uint8 [H, W, 3] of the model's frame size -> tokens, by the worker. Raises CogVideoError."""
        return self._ask(model, lambda pipeline: pipeline.encode(picture))

    def decode(self, tokens: TokenFrames, model: str | None = None) -> Frames:
        """Tokens -> what the model sees in them, uint8 [F, H, W, 3], by the worker. Raises CogVideoError."""
        return self._ask(model, lambda pipeline: pipeline.decode(tokens))

    def _ask(self, model: str | None, work: Callable[[Pipeline], Result]) -> Result:
        """Lets the worker do something small; a server whose worker has not started does it itself."""
        name = model or self.preset.name
        pipeline = self._registry.pipeline(name)

        def errand() -> Result:
            self._registry.used(name)
            return work(pipeline)

        return errand() if self._thread is None else self._errands.submit(errand, self.limits.call_timeout_seconds)


def open_jobs(
    data: Path,
    model: str | None,
    limits: Limits | None = None,
    device: str | None = None,
    eight_bit: bool = False,
    offload: bool = False,
    memory: str | None = None,
) -> JobService:
    """Jobs for the model called `model` (None: the best there is), with the real pipeline, imported when needed."""
    first, *others = available_models(model or default_model(device), device, eight_bit, offload, memory)
    return JobService(data, first.preset, lambda: first.make(None), limits=limits, others=[first, *others])


def new_key() -> str:
    """A key for one browser or one program: whoever has it may stop and delete what was asked for with it."""
    return secrets.token_urlsafe(24)


def owner_of(key: str) -> str:
    """What is stored of a key. Raises RequestError where the key is too short to be a secret."""
    if len(key) < 16:
        raise RequestError("缺少密钥：请重新载入页面。", "The key is missing: reload the page.")
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
