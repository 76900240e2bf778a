"""Jobs that run or wait: who is next, what people see of each, and when a server has enough. No torch.

In: views of new jobs, and what the worker says of the one that runs. Out: the next job, and views with their places.
Any thread may call any method; what people see is on disk before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cogvideo.errors import CapacityError, RequestError
from cogvideo.jobs.repository import JobRepository, stored
from cogvideo.jobs.scheduling import check_capacity, fair_order
from cogvideo.jobs.state import JobState, apply_log_entry
from cogvideo.jobs.store import Record, Store


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
    call_timeout_seconds: float = 120.0
    """How long a page waits for the worker to look at a picture."""
    preview_seconds: float = 0.2
    """Least time between two pictures of a keyframe that is being painted."""
    full_seconds: float = 5.0
    """How long the worker waits before it writes again what a full disk did not take."""
    worker_stop_seconds: float = 10.0
    """How long `close` waits for the worker to notice."""


class CancelFlags:
    """What the worker asks between tokens: has anybody had enough?"""

    def __init__(self) -> None:
        self.now = threading.Event()
        self.after_level = threading.Event()


class JobQueue:
    """All jobs that are not final; begins with those that waited when the server ended.

    `changed`: notified when there may be something to do. Whoever holds it sees no change by others.
    """

    def __init__(self, store: Store, archive: JobRepository, limits: Limits) -> None:
        self._store, self._archive, self._limits = store, archive, limits
        self.changed = threading.Condition()  # guards everything below
        self.closing = False
        self._views: dict[str, JobState] = {}  # oldest first
        self._owners: dict[str, str] = {}
        self._served: dict[str, int] = {}  # owner -> number of the turn last given
        self._seen: dict[str, float] = {}  # job -> when somebody last looked, monotonic
        self._stops: dict[str, CancelFlags] = {}
        self._turns = 0
        self._places: dict[str, int] | None = None  # waiting job -> jobs before it; None: to be counted anew
        for record in archive.recover():
            self._enter(archive.state(record), record.owner)
        self._tidy()

    def __len__(self) -> int:
        """Jobs running and waiting."""
        with self.changed:
            return len(self._views)

    # What people do.

    def add(self, views: Sequence[JobState], owner: str) -> None:
        """Takes all of `views` in, or none. Raises CapacityError."""
        with self.changed:
            self._drop_abandoned()
            mine = sum(1 for job in self._views if self._owners[job] == owner)
            check_capacity(len(views), mine, self._limits.per_owner, len(self._waiting()), self._limits.waiting)
            self._store.add(*(Record(view.id, owner, stored(view), "queued", view.created, None, 0) for view in views))
            for view in views:
                self._enter(view, owner)
            self._places = None
            self.changed.notify_all()

    def view(self, job: str) -> JobState | None:
        """The job as it is now, None where it is final or not there. Whoever looks keeps it from being dropped."""
        with self.changed:
            view = self._views.get(job)
            if view is not None:
                self._seen[job] = time.monotonic()
                return replace(view, place=self._place(job)) if view.status == "queued" else view
            return None

    def stop(self, job: str, after_level: bool) -> None:
        """A waiting job ends at once; the one that runs is told."""
        with self.changed:
            view = self._views.get(job)
            if view is None:
                return
            if view.status == "queued":
                self.finish(job, "stopped", {})
                return
            stop = self._stops[job]
            (stop.after_level if after_level else stop.now).set()
            self._views[job] = replace(view, stopping="level" if after_level else "now")

    def delete(self, job: str) -> None:
        """Removes a job that is not running, with its files. Raises RequestError, CapacityError."""
        with self.changed:
            view = self._views.get(job)
            if view is not None and view.status == "running":
                raise RequestError("这段视频正在生成：请先停止它。", "This video is being made: stop it first.")
            self._forget(job)

    def close(self) -> None:
        """Tells the worker to end: waiting jobs stay for the next start."""
        with self.changed:
            self.closing = True
            for stop in self._stops.values():
                stop.now.set()
            self.changed.notify_all()

    def wake(self) -> None:
        """There may be something to do besides jobs."""
        with self.changed:
            self.changed.notify_all()

    # What the worker does.

    def begin(self) -> tuple[JobState, CancelFlags] | None:
        """The next job, running from now on; None where nobody waits. Raises CapacityError where it cannot be noted."""
        with self.changed:
            self._drop_abandoned()
            waiting = self._order()
            if not waiting:
                return None
            job = waiting[0]
            self._store.move(job, time.time(), "running", {})
            self._turns += 1
            self._places = None
            self._served[self._owners[job]] = self._turns
            self._stops[job] = CancelFlags()
            self._views[job] = replace(self._views[job], status="running", place=None, stage="load")
            return self._views[job], self._stops[job]

    def note(self, job: str, kind: str, data: dict[str, Any]) -> None:
        """One more entry in the log of the job that runs. Raises CapacityError where the disk does not take it."""
        self._store.append(job, time.time(), kind, data)
        self.change(job, lambda view: apply_log_entry(view, kind, data))

    def change(self, job: str, change: Callable[[JobState], JobState]) -> None:
        """What passes and is not kept."""
        with self.changed:
            self._views[job] = change(self._views[job])

    def finish(self, job: str, status: str, data: dict[str, Any]) -> None:
        """The job is final, if it was not. Raises CapacityError where that cannot be noted: then it is not."""
        with self.changed:
            if job not in self._views:
                return
            data = {**data, "done": self._views[job].done}
            self._store.finish(job, time.time(), status, data, self._archive.artifacts(job).size())
            self._drop(job)
            if not self._views:
                self._served.clear()  # with an empty queue all owners are equal again
            with suppress(CapacityError):  # a full disk; the next job tries again
                self._tidy()
            self.changed.notify_all()

    # All of these are called with `changed` held.

    def _enter(self, view: JobState, owner: str) -> None:
        self._views[view.id], self._owners[view.id] = view, owner
        self._seen[view.id] = time.monotonic()

    def _waiting(self) -> list[str]:
        return [job for job, view in self._views.items() if view.status == "queued"]

    def _order(self) -> list[str]:
        return fair_order([(job, self._owners[job]) for job in self._waiting()], self._served, self._turns)

    def _place(self, job: str) -> int:
        if self._places is None:
            running = sum(1 for view in self._views.values() if view.status == "running")
            self._places = {job: running + index for index, job in enumerate(self._order())}
        return self._places[job]

    def _drop_abandoned(self) -> None:
        limit = self._limits.abandoned_seconds
        if limit is None:
            return
        now = time.monotonic()
        for job in self._waiting():
            if now - self._seen[job] > limit:
                error = ("很久没有人查看，已取消排队。", "Nobody looked at it for a while, so it left the queue.")
                self.finish(job, "stopped", {"error": error})

    def _tidy(self) -> None:
        for job in self._archive.outdated(self._limits.keep_bytes, self._limits.keep_seconds):
            self._forget(job)

    def _forget(self, job: str) -> None:
        self._archive.delete(job)
        self._drop(job)

    def _drop(self, job: str) -> None:
        for table in (self._views, self._owners, self._stops, self._seen):
            table.pop(job, None)
        self._places = None
