"""The worker: it alone lets pipelines draw, one job after the other, and writes down what comes of it. No torch.

In: the queue. Out: the log, the files and the newest view of the job that runs.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

from cogvideo.errors import Cancelled, CapacityError, CogVideoError, OutOfMemoryError, user_message
from cogvideo.events import Event, RoundCompleted, VideoCompleted
from cogvideo.jobs.eta import ThroughputStore
from cogvideo.jobs.model_registry import ModelRegistry, Pipeline
from cogvideo.jobs.queue import CancelFlags, JobQueue, Limits
from cogvideo.jobs.recorder import EventRecorder, ProgressTracker
from cogvideo.jobs.repository import JobRepository, comment
from cogvideo.jobs.state import JobState
from cogvideo.request import tokens_per_stage

LOG = logging.getLogger(__name__)


class Worker:
    """Everything but `__init__` runs in the worker's thread."""

    def __init__(
        self,
        queue: JobQueue,
        archive: JobRepository,
        registry: ModelRegistry,
        speeds: ThroughputStore,
        errands: WorkerCalls,
        limits: Limits,
    ) -> None:
        self._queue, self._archive, self._registry = queue, archive, registry
        self._speeds, self._errands, self._limits = speeds, errands, limits

    def work(self, preload: str | None) -> None:
        """Draws until the queue is closed. `preload`: the model that is read before anybody asks for it."""
        if preload:
            try:
                self._registry.activate(preload, None).load()
            except Exception:  # the first job meets the same error and shows it to a person
                LOG.exception("The model could not be loaded ahead of time")
            # What is there now stays: looking through it for garbage takes 0.3 s, in which no page is answered.
            gc.collect()
            gc.freeze()
        while claimed := self._claim():
            view, stop = claimed
            try:
                self._run(view, stop, self._registry.activate(view.model, view.memory))
            except (Exception, SystemExit) as error:  # whatever a library does, the next job runs
                LOG.exception("Job failed")
                self._end(view.id, "failed", {"error": user_message(error)})

    def _claim(self) -> tuple[JobState, CancelFlags] | None:
        """Waits for the next job; None when the server closes. Does errands meanwhile."""
        while True:
            self._errands.run()
            with self._queue.changed:
                if self._queue.closing:
                    return None
                try:
                    if claimed := self._queue.begin():
                        return claimed
                except CapacityError as error:
                    self._wait_for_room(error)
                    continue
                if self._errands or self._queue.changed.wait(self._limits.idle_seconds):
                    continue
            self._registry.unload_others(None)

    def _run(self, view: JobState, stop: CancelFlags, pipeline: Pipeline) -> None:
        """Draws one video. Returns once the pipeline has let go of the accelerator."""
        job = view.id
        pace = self._speeds.pace(view.model, pipeline.profile_key)
        plan = tokens_per_stage(self._registry.preset(view.model).model, view.request)
        meter = ProgressTracker(plan, pace, view.request.num_drafts, self._limits.preview_seconds)
        trouble: CogVideoError | None = None
        with EventRecorder(
            self._archive.artifacts(job), view.request, comment(view), partial(self._queue.note, job)
        ) as take:
            try:
                self._draw(job, take, meter, stop, pipeline.stream(view.request, stop.now.is_set))
                status, left = "done", take.final()
            except Cancelled:
                status, left = "interrupted" if self._queue.closing else "stopped", take.kept()
            except CogVideoError as error:
                LOG.warning("Job refused by the pipeline: %s", error)
                trouble = error.with_traceback(None)  # whose frames would hold what is to be freed
            if trouble:
                if isinstance(trouble, CapacityError):
                    self._registry.unload_others(None)
                smaller = trouble.next_preset if isinstance(trouble, OutOfMemoryError) else None
                status, left = "failed", {**take.kept(), "error": user_message(trouble), "smaller": smaller}
        self._end(job, status, left)
        self._speeds.keep(view.model, pipeline.profile_key, pace)

    def _draw(
        self,
        job: str,
        take: EventRecorder,
        meter: ProgressTracker,
        stop: CancelFlags,
        events: Generator[Event, None, None],
    ) -> None:
        """Hears all events of a run, and does errands between them. Raises what the pipeline raises, and Cancelled."""
        with closing(events):
            for event in events:
                take.keep(event)
                self._queue.change(job, partial(meter.show, event=event))
                self._errands.run()
                if stop.now.is_set() and not isinstance(event, VideoCompleted):
                    raise Cancelled
                if stop.after_level.is_set() and isinstance(event, RoundCompleted):
                    raise Cancelled

    def _end(self, job: str, status: str, data: dict[str, Any]) -> None:
        with self._queue.changed:
            while True:
                try:
                    return self._queue.finish(job, status, data)
                except CapacityError as error:
                    if self._queue.closing:  # the next start marks it interrupted
                        return None
                    self._wait_for_room(error)

    def _wait_for_room(self, error: CapacityError) -> None:
        """A worker that cannot write down what it does does nothing."""
        LOG.error("Nothing goes on before the disk takes it: %s", error)
        self._queue.changed.wait(self._limits.full_seconds)


Result = TypeVar("Result")


class WorkerCalls:
    """What waits for the worker. `wake` is called when something new does."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._waiting)

    def submit(self, work: Callable[[], Result], seconds: float) -> Result:
        """What `work` returns once the worker has done it. Raises what it raises, CapacityError after `seconds`."""
        future: Future[Result] = Future()
        self._waiting.append((future, work))
        self._wake()
        try:
            return future.result(seconds)
        except TimeoutError:
            if not future.cancel() and future.done():
                return future.result()  # it came at the last moment
            raise CapacityError(
                "服务器正忙，暂时无法处理这张图片：请过一会儿再试。",
                "The server is busy and cannot look at the picture now: try again in a while.",
            ) from None

    def run(self) -> None:
        """Does all that waits. Called by the worker."""
        while self._waiting:
            future, work = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except BaseException as error:  # belongs to whoever asked
                future.set_exception(error)
