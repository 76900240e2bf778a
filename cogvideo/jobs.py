"""Wishes in, videos out: a bounded fair queue, one worker that owns the model, and a log that survives everything.

A `VideoRequest` goes in with the key of whoever asks; a random id comes out. Whoever has the id may watch; whoever has
the key may stop and delete. Nothing here imports torch: the pipeline is made by a factory, in the worker's thread.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cogvideo.archive import Archive, comment, stored
from cogvideo.choice import default_model
from cogvideo.config import Preset, VideoRequest
from cogvideo.errands import Errands
from cogvideo.errors import Cancelled, CapacityError, CogVideoError, OutOfMemory, RequestError
from cogvideo.events import Done, Event, Frames, LevelDone
from cogvideo.keys import new_key as new_key
from cogvideo.keys import new_seed as new_seed
from cogvideo.keys import owner_of
from cogvideo.offers import Offer, Pipeline, offers
from cogvideo.pace import tokens_per_stage
from cogvideo.registry import Registry
from cogvideo.results import WriteVideo
from cogvideo.results import read_settings as read_settings
from cogvideo.speeds import Speeds
from cogvideo.store import Entry, Record, Store, lock_folder
from cogvideo.take import Take
from cogvideo.tokens import TokenFrames
from cogvideo.turns import order, refuse_when_full
from cogvideo.video import write_video
from cogvideo.view import View, fold, sentence

if TYPE_CHECKING:
    from cogvideo.text import Reading

LOG = logging.getLogger(__name__)

Result = TypeVar("Result")

FORBIDDEN = RequestError(
    "只有提交者可以停止或删除这段视频：您可以用同样的设置自己生成一段。",
    "Only the person who asked for this video may stop or delete it: make your own with the same settings.",
)


@dataclass(frozen=True)
class Limits:
    """How much a server takes on and keeps."""

    waiting: int = 20
    """Jobs that may wait, in all."""
    per_owner: int = 3
    """Jobs that one person may have running and waiting."""
    keep_bytes: int = 2 * 2**30
    """Bytes of finished clips; the oldest go first."""
    keep_seconds: float = 30 * 86400.0
    """Age at which finished clips go."""
    abandoned_seconds: float | None = None
    """A waiting job that nobody has looked at for so long is dropped; None: never."""
    idle_seconds: float | None = None
    """A server without work for so long lets go of the weights; None: never."""
    errand_seconds: float = 120.0
    """How long a page waits for the worker to look at a picture."""
    preview_seconds: float = 0.2
    """Least time between two pictures of a keyframe that is being painted."""
    full_seconds: float = 5.0
    """How long the worker waits before it writes again what a full disk did not take."""
    worker_stop_seconds: float = 10.0
    """How long `close` waits for the worker to notice."""


class Stop:
    """What the worker asks between tokens: has anybody had enough?"""

    def __init__(self) -> None:
        self.now = threading.Event()
        self.after_level = threading.Event()


class Jobs:
    """All jobs of one server and one accelerator.

    `data`: folder for the log and the clips, made where missing, used by one server at a time (CapacityError).
    `pipeline`: called once, for the first prompt or for `start(preload=True)`; only the worker lets it draw.
    `others`: models besides the `preset` that may be asked for. Only one model has its weights loaded at a time.
    """

    def __init__(
        self,
        data: Path,
        preset: Preset,
        pipeline: Callable[[], Pipeline],
        video_writer: WriteVideo,
        limits: Limits | None = None,
        others: Sequence[Offer] = (),
    ) -> None:
        self.preset = preset
        own = Offer(preset, lambda _: pipeline(), lambda: None)
        self._registry = Registry([own, *others])
        self.limits = limits or Limits()
        self.results = data / "results"
        self._lock_file = lock_folder(data)
        self._store = Store(data / "jobs.sqlite")
        self._speeds = Speeds(self._store)
        self._archive = Archive(self._store, self.results, video_writer, preset.name, self.preset_of)
        self._changed = threading.Condition()  # guards everything below
        self._errands = Errands(self._wake)
        self._views: dict[str, View] = {}  # active jobs, oldest first
        self._owners: dict[str, str] = {}
        self._served: dict[str, int] = {}  # owner -> number of the turn last given
        self._seen: dict[str, float] = {}  # job -> when somebody last looked, monotonic
        self._stops: dict[str, Stop] = {}
        self._turns = 0
        self._places: dict[str, int] | None = None  # waiting job -> jobs before it; None: to be counted anew
        self._closing = False
        self._worker: threading.Thread | None = None
        for record in self._archive.recover():  # waiting jobs wait on, in their order
            self._views[record.id], self._owners[record.id] = self._archive.view(record), record.owner
            self._seen[record.id] = time.monotonic()
        self._tidy()

    # Life of the server.

    def start(self, preload: bool = False) -> None:
        """Starts the worker; with `preload` it makes the pipeline before the first job asks for it."""
        self._worker = threading.Thread(target=self._work, args=(preload,), name="cogvideo-worker", daemon=True)
        self._worker.start()

    def close(self) -> None:
        """Ends the worker: waiting jobs stay in the queue for the next start, a running one is marked interrupted."""
        with self._changed:
            self._closing = True
            for stop in self._stops.values():
                stop.now.set()
            self._changed.notify_all()
        if self._worker:
            self._worker.join(self.limits.worker_stop_seconds)
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
    ) -> View:
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
    ) -> list[View]:
        """As `submit`, all of `requests` or none."""
        owner = owner_of(key)
        model = model or self.preset.name
        views = [self._new(request, comment, model, memory) for request in requests]
        with self._changed:
            self._drop_abandoned()
            self._refuse_when_full(owner, len(views))
            self._store.add(*(Record(view.id, owner, stored(view), "queued", view.created, None, 0) for view in views))
            for view in views:
                self._views[view.id], self._owners[view.id] = view, owner
                self._seen[view.id] = time.monotonic()
            self._places = None
            self._changed.notify_all()
        return [self.view(view.id) for view in views]

    def _new(self, request: VideoRequest, comment: bool, model: str, memory: str | None) -> View:
        checked = self._registry.pipeline(model, memory).check(request)
        return View(
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

    @property
    def offers(self) -> dict[str, Offer]:
        """The models that may be asked for, by name, the server's own first."""
        return self._registry.offers

    def offer(self, model: str) -> Offer:
        """The model of that name. Raises RequestError where this server does not know it."""
        return self._registry.offer(model)

    def held(self, model: str) -> tuple[str, str] | None:
        """The kind of device and the memory preset that fit the model; None where it cannot be made here."""
        return self._registry.held(model)

    def read(self, request: VideoRequest, model: str | None = None) -> Reading:
        """The prompt as the model reads it, piece by piece. Raises RequestError."""
        return self._registry.pipeline(model or self.preset.name).read(request)

    def encode(self, picture: Frames, model: str | None = None) -> TokenFrames:
        """A picture uint8 [H, W, 3] of the model's frame size -> tokens, by the worker. Raises CogVideoError."""
        return self._ask(model, lambda pipeline: pipeline.encode(picture))

    def decode(self, tokens: TokenFrames, model: str | None = None) -> Frames:
        """Tokens -> what the model sees in them, uint8 [F, H, W, 3], by the worker. Raises CogVideoError."""
        return self._ask(model, lambda pipeline: pipeline.decode(tokens))

    def stop(self, job: str, key: str, after_level: bool = False) -> None:
        """Stops the job within one token, or once the level being drawn is complete; what exists is kept."""
        self._demand(job, key)
        with self._changed:
            view = self._views.get(job)
            if view is None:
                return
            if view.status == "queued":
                self._finish(job, "stopped", {})
                return
            stop = self._stops[job]
            (stop.after_level if after_level else stop.now).set()
            self._views[job] = replace(view, stopping="level" if after_level else "now")

    def delete(self, job: str, key: str) -> None:
        """Removes a job that is not running, with its files. Raises RequestError for others' and running jobs."""
        self._demand(job, key)
        with self._changed:
            view = self._views.get(job)
            if view is not None and view.status == "running":
                raise RequestError("这段视频正在生成：请先停止它。", "This video is being made: stop it first.")
            self._forget(job)

    def again(self, job: str, key: str) -> View:
        """A new job with the same settings, for whoever asks."""
        view = self.view(job)
        return self.submit(view.request, key, view.comment, view.model, view.memory)

    # What people see.

    def view(self, job: str) -> View:
        """The job as it is now. Raises RequestError where there is none."""
        with self._changed:
            view = self._views.get(job)
            if view is not None:
                self._seen[job] = time.monotonic()
                return replace(view, place=self._place(job)) if view.status == "queued" else view
        return self._archive.view(self._archive.record(job))

    def holds(self, job: str, key: str) -> bool:
        """Whether the job belongs to `key`."""
        try:
            return secrets.compare_digest(self._archive.record(job).owner, owner_of(key))
        except RequestError:  # there is no such job, or no such key
            return False

    def log(self, job: str, after: int = 0) -> list[Entry]:
        """The job's log entries with seq > `after`."""
        return self._store.log(job, after)

    def history(self, key: str, limit: int = 24) -> list[View]:
        """The key's own jobs, newest first."""
        views = []
        for record in self._store.of_owner(owner_of(key), limit):
            with suppress(RequestError):  # deleted a moment ago
                views.append(self.view(record.id))
        return views

    async def follow(self, job: str, tick: float = 0.1, beat: float | None = None) -> AsyncIterator[View]:
        """Yields the job's view now and after every change, at most once per `tick`; ends with a final one.

        With `beat` an unchanged view comes again after so many seconds, as a sign of life.
        """
        last: View | None = None
        since = 0.0
        while True:
            view = self.view(job)
            now = time.monotonic()
            if view != last or (beat is not None and now - since >= beat):
                yield view
                last, since = view, now
            if not view.active:
                return
            await asyncio.sleep(tick)

    def queue_length(self) -> int:
        """Jobs running and waiting."""
        with self._changed:
            return len(self._views)

    def tokens(self, job: str, draft: int = 0) -> TokenFrames | None:
        """The frames that a job has drawn, before super-resolution; None where it kept none."""
        return self._archive.tokens(job, draft)

    def estimate(self, request: VideoRequest, model: str | None = None, memory: str | None = None) -> float | None:
        """Seconds that `request` would take once it runs, as far as speeds were measured."""
        return self._speeds.estimate(self.offer(model or self.preset.name).preset, request, memory)

    def file(self, job: str, name: str) -> Path | None:
        """The path of one of a job's files; None where there is none, whatever the two strings hold.

        A gif and a zip of the frames are made when they are first asked for.
        """
        return self._archive.file(job, name)

    # The queue. All of these are called with the lock held.

    def _refuse_when_full(self, owner: str, count: int) -> None:
        mine = sum(1 for job in self._views if self._owners[job] == owner)
        refuse_when_full(count, mine, self.limits.per_owner, len(self._waiting()), self.limits.waiting)

    def _waiting(self) -> list[str]:
        return [job for job, view in self._views.items() if view.status == "queued"]

    def _order(self) -> list[str]:
        return order([(job, self._owners[job]) for job in self._waiting()], self._served, self._turns)

    def _place(self, job: str) -> int:
        if self._places is None:
            running = sum(1 for view in self._views.values() if view.status == "running")
            self._places = {job: running + index for index, job in enumerate(self._order())}
        return self._places[job]

    def _claim(self) -> str | None:
        """Waits for the next job and marks it running; None when the server closes. Does errands meanwhile."""
        while True:
            self._errands.run()
            with self._changed:
                if self._closing:
                    return None
                try:
                    self._drop_abandoned()
                    if following := self._order():
                        return self._begin(following[0])
                except CapacityError as error:
                    self._wait_for_room(error)
                    continue
                if self._errands or self._changed.wait(self.limits.idle_seconds):
                    continue
            self._registry.let_go(None)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait_for_room(self, error: CapacityError) -> None:
        """A worker that cannot write down what it does does nothing."""
        LOG.error("Nothing goes on before the disk takes it: %s", error)
        self._changed.wait(self.limits.full_seconds)

    def _begin(self, job: str) -> str:
        self._store.move(job, time.time(), "running", {})
        self._turns += 1
        self._places = None
        self._served[self._owners[job]] = self._turns
        self._stops[job] = Stop()
        self._views[job] = replace(self._views[job], status="running", place=None, stage="load")
        return job

    def _drop_abandoned(self) -> None:
        limit = self.limits.abandoned_seconds
        if limit is None:
            return
        now = time.monotonic()
        for job in self._waiting():
            if now - self._seen.get(job, now) > limit:
                error = ("很久没有人查看，已取消排队。", "Nobody looked at it for a while, so it left the queue.")
                self._finish(job, "stopped", {"error": error})

    def _finish(self, job: str, status: str, data: dict[str, Any]) -> None:
        self._store.finish(job, time.time(), status, data, self._archive.folder(job).size())
        for table in (self._views, self._owners, self._stops, self._seen):
            table.pop(job, None)
        self._places = None
        if not self._views:
            self._served.clear()  # with an empty queue all owners are equal again
        with suppress(CapacityError):  # a full disk; the next job tries again
            self._tidy()
        self._changed.notify_all()

    # What is kept.

    def _tidy(self) -> None:
        for job in self._archive.outdated(self.limits.keep_bytes, self.limits.keep_seconds):
            self._forget(job)

    def _forget(self, job: str) -> None:
        self._archive.delete(job)
        for table in (self._views, self._owners, self._seen):
            table.pop(job, None)
        self._places = None

    def _demand(self, job: str, key: str) -> None:
        self._archive.record(job)
        if not self.holds(job, key):
            raise FORBIDDEN

    def preset_of(self, view: View) -> Preset:
        """The job's model; the server's own where it does not know that one any more."""
        return self.offers.get(view.model, self.offers[self.preset.name]).preset

    def _ask(self, model: str | None, work: Callable[[Pipeline], Result]) -> Result:
        """Lets the worker do something small; a server whose worker has not started does it itself."""
        name = model or self.preset.name
        pipeline = self._registry.pipeline(name)

        def errand() -> Result:
            self._registry.used(name)
            return work(pipeline)

        return errand() if self._worker is None else self._errands.ask(errand, self.limits.errand_seconds)

    # The worker. Everything below runs in its thread.

    def _work(self, preload: bool) -> None:
        if preload:
            try:
                self._registry.ready(self.preset.name, None).load()
            except Exception:  # the first job meets the same error and shows it to a person
                LOG.exception("The model could not be loaded ahead of time")
        while job := self._claim():
            try:
                view = self._views[job]
                self._run(job, self._registry.ready(view.model, view.memory))
            except (Exception, SystemExit) as error:  # whatever a library does, the next job runs
                LOG.exception("Job failed")
                self._end(job, "failed", {"error": sentence(error)})

    def _run(self, job: str, pipeline: Pipeline) -> None:
        """Draws one video. Returns once the pipeline has let go of the accelerator."""
        with self._changed:
            view, stop = self._views[job], self._stops[job]
        plan = tokens_per_stage(self.preset_of(view).model, view.request)
        pace = self._speeds.pace(view.model, pipeline.how)
        take = Take(self._archive.folder(job), view.request, plan, pace, self.limits.preview_seconds)
        trouble: CogVideoError | None = None
        try:
            self._draw(job, take, stop, pipeline.stream(view.request, stop.now.is_set))
        except Cancelled:
            self._end(job, "interrupted" if self._closing else "stopped", take.kept(comment(view)))
        except CogVideoError as error:
            LOG.warning("Job refused by the pipeline: %s", error)
            trouble = error.with_traceback(None)  # whose frames would hold what is to be freed
        else:
            if take.finished is None:
                raise RuntimeError("The pipeline ended without its last event")
            self._end(job, "done", take.last("final", take.finished, comment(view)))
        if trouble:
            if isinstance(trouble, CapacityError):
                self._registry.let_go(None)
            smaller = trouble.next_preset if isinstance(trouble, OutOfMemory) else None
            self._end(job, "failed", {**take.kept(None), "error": sentence(trouble), "smaller": smaller})
        self._speeds.keep(view.model, pipeline.how, take.pace)

    def _draw(self, job: str, take: Take, stop: Stop, events: Generator[Event, None, None]) -> None:
        """Hears all events of a run, and does errands between them. Raises what the pipeline raises, and Cancelled."""
        with closing(events):
            for event in events:
                self._hear(job, take, event)
                self._errands.run()
                if stop.now.is_set() and not isinstance(event, Done):
                    raise Cancelled
                if stop.after_level.is_set() and isinstance(event, LevelDone):
                    raise Cancelled

    def _hear(self, job: str, take: Take, event: Event) -> None:
        """One event: files first, then the log, then what people see."""
        logged = take.keep(event)
        if logged:
            self._store.append(job, time.time(), *logged)
        with self._changed:
            view = self._views[job]
            if logged:
                view = fold(view, *logged)
            self._views[job] = take.show(view, event)

    def _end(self, job: str, status: str, data: dict[str, Any]) -> None:
        with self._changed:
            while job in self._views:
                try:
                    self._finish(job, status, {**data, "done": self._views[job].done})
                except CapacityError as error:
                    if self._closing:  # the next start marks it interrupted
                        return
                    self._wait_for_room(error)


def open_jobs(
    data: Path,
    model: str | None,
    limits: Limits | None = None,
    device: str | None = None,
    eight_bit: bool = False,
    offload: bool = False,
    memory: str | None = None,
) -> Jobs:
    """Jobs for the model called `model` (None: the best there is), with the real pipeline, imported when needed."""
    first, *others = offers(model or default_model(device), device, eight_bit, offload, memory)
    return Jobs(data, first.preset, lambda: first.make(None), write_video, limits, [first, *others])
