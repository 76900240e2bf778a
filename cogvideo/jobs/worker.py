"""The worker thread: runs pipelines, one job at a time, and records their results."""

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
from cogvideo.jobs.log_entries import Failed, FinalEntry, Finished, Interrupted, Stopped
from cogvideo.jobs.model_registry import ModelRegistry, Pipeline
from cogvideo.jobs.queue import CancelFlags, JobQueue, Limits
from cogvideo.jobs.recorder import EventRecorder, ProgressTracker
from cogvideo.jobs.repository import JobRepository, video_metadata
from cogvideo.jobs.state import JobState
from cogvideo.messages import message
from cogvideo.request import tokens_per_stage

LOG = logging.getLogger(__name__)


class Worker:
    """The only user of the pipelines. All methods run in the worker's thread."""

    def __init__(
        self,
        queue: JobQueue,
        repository: JobRepository,
        registry: ModelRegistry,
        throughput: ThroughputStore,
        calls: WorkerCalls,
        limits: Limits,
    ) -> None:
        self._queue, self._repository, self._registry = queue, repository, registry
        self._throughput, self._calls, self._limits = throughput, calls, limits

    def run(self, preload: str | None) -> None:
        """Run jobs until the queue is closed. `preload`: model to load before the first job."""
        if preload:
            try:
                self._registry.activate(preload, None).load()
            except Exception:  # the first job raises the same error and reports it to the user
                LOG.exception("The model could not be loaded ahead of time")
            # A full garbage collection of the loaded modules takes 0.3 s, in which no request is answered.
            gc.collect()
            gc.freeze()
        while claimed := self._wait_for_job():
            state, flags = claimed
            try:
                self._run_job(state, flags, self._registry.activate(state.model, state.memory))
            except (Exception, SystemExit) as error:  # the next job runs, even if a library exits
                LOG.exception("Job failed")
                self._finish(state.id, Failed(user_message(error)))

    def _wait_for_job(self) -> tuple[JobState, CancelFlags] | None:
        """Wait for the next job and run short calls meanwhile. Returns None once the server closes."""
        while True:
            self._calls.run_pending()
            with self._queue.changed:
                if self._queue.closing:
                    return None
                try:
                    if claimed := self._queue.start_next():
                        return claimed
                except CapacityError as error:
                    self._wait_for_disk(error)
                    continue
                if self._calls or self._queue.changed.wait(self._limits.idle_seconds):
                    continue
            self._registry.unload_others(None)

    def _run_job(self, state: JobState, flags: CancelFlags, pipeline: Pipeline) -> None:
        """Generate one video. Returns after the pipeline has released the accelerator."""
        request = state.request
        estimator = self._throughput.estimator(state.model, pipeline.profile_key)
        plan = tokens_per_stage(self._registry.preset(state.model).model, request)
        tracker = ProgressTracker(plan, estimator, request.num_drafts, self._limits.preview_seconds)
        failure: CogVideoError | None = None
        ending: FinalEntry
        with EventRecorder(
            self._repository.artifacts(state.id), request, video_metadata(state), partial(self._queue.log, state.id)
        ) as recorder:
            try:
                self._consume(state.id, recorder, tracker, flags, pipeline.stream(request, flags.now.is_set))
                ending = Finished(recorder.final_video())
            except Cancelled:
                files = recorder.partial_video()
                ending = Interrupted(files) if self._queue.closing else Stopped(files)
            except CogVideoError as error:
                LOG.warning("Job refused by the pipeline: %s", error)
                failure = error.with_traceback(None)  # its frames would keep the tensors to be freed alive
            if failure:
                if isinstance(failure, CapacityError):
                    self._registry.unload_others(None)
                next_preset = failure.next_preset if isinstance(failure, OutOfMemoryError) else None
                ending = Failed(user_message(failure), recorder.partial_video(), next_preset=next_preset)
        self._finish(state.id, ending)
        self._throughput.save(state.model, pipeline.profile_key, estimator)

    def _consume(
        self,
        job: str,
        recorder: EventRecorder,
        tracker: ProgressTracker,
        flags: CancelFlags,
        events: Generator[Event, None, None],
    ) -> None:
        """Process all events of a run, with short calls between them. Raises errors of the pipeline, and Cancelled."""
        with closing(events):
            for event in events:
                recorder.record(event)
                self._queue.update(job, partial(tracker.update, event=event))
                self._calls.run_pending()
                if flags.now.is_set() and not isinstance(event, VideoCompleted):
                    raise Cancelled
                if flags.after_round.is_set() and isinstance(event, RoundCompleted):
                    raise Cancelled

    def _finish(self, job: str, ending: FinalEntry) -> None:
        with self._queue.changed:
            while True:
                try:
                    return self._queue.finish(job, ending)
                except CapacityError as error:
                    if self._queue.closing:  # the next start marks the job as interrupted
                        return None
                    self._wait_for_disk(error)

    def _wait_for_disk(self, error: CapacityError) -> None:
        LOG.error("The queue is paused until the disk is writable: %s", error)
        self._queue.changed.wait(self._limits.disk_full_retry_seconds)


Result = TypeVar("Result")


class WorkerCalls:
    """Short calls that need the model, executed on the worker thread. `wake` is called for each new one."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._pending: deque[tuple[Future[Any], Callable[[], Any]]] = deque()

    def __bool__(self) -> bool:
        """Return whether a call is pending."""
        return bool(self._pending)

    def submit(self, call: Callable[[], Result], timeout: float) -> Result:
        """Run `call` on the worker thread and return its result.

        Raises the errors of `call`, and CapacityError after `timeout` seconds.
        """
        future: Future[Result] = Future()
        self._pending.append((future, call))
        self._wake()
        try:
            return future.result(timeout)
        except TimeoutError:
            if not future.cancel() and future.done():
                return future.result()  # completed just after the timeout
            raise CapacityError(*message("worker.busy")) from None

    def run_pending(self) -> None:
        """Run all pending calls. Called by the worker."""
        while self._pending:
            future, call = self._pending.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:  # raised in the caller's thread
                future.set_exception(error)
