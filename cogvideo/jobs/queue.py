"""Jobs that run or wait: scheduling, current states, and limits of the server.

Thread-safe. A change is on disk before it is visible.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from cogvideo.errors import CapacityError, RequestError
from cogvideo.jobs.log_entries import FinalEntry, LogEntry, Stopped
from cogvideo.jobs.records import JobSettings, Record
from cogvideo.jobs.repository import JobRepository
from cogvideo.jobs.scheduling import check_capacity, fair_order
from cogvideo.jobs.state import JobState, apply_log_entry
from cogvideo.jobs.store import Store
from cogvideo.messages import message


@dataclass(frozen=True)
class Limits:
    """Capacity, retention and timeouts of a server."""

    waiting: int = 20
    """Maximum number of queued jobs."""
    per_owner: int = 3
    """Maximum number of running and queued jobs per user."""
    keep_bytes: int = 2 * 2**30
    """Maximum bytes of finished videos; the oldest are deleted first."""
    keep_seconds: float = 30 * 86400.0
    """Maximum age of finished videos."""
    abandoned_seconds: float | None = None
    """Time without a viewer after which a queued job is removed; None: never."""
    idle_seconds: float | None = None
    """Time without work after which the weights are unloaded; None: never."""
    call_timeout_seconds: float = 120.0
    """Timeout of short calls to the worker, such as encoding an image."""
    preview_seconds: float = 0.2
    """Minimum time between two previews of a keyframe in progress."""
    disk_full_retry_seconds: float = 5.0
    """Time between two attempts to write to a full disk."""
    worker_stop_seconds: float = 10.0
    """Time that `close` waits for the worker to end."""


class CancelFlags:
    """Cancellation flags of the running job, checked after every token."""

    def __init__(self) -> None:
        self.now = threading.Event()
        self.after_round = threading.Event()


class JobQueue:
    """All jobs that are not final, starting with those that were queued when the server last ended.

    `changed` guards all fields and is notified when the worker may have something to do.
    """

    def __init__(self, store: Store, repository: JobRepository, limits: Limits) -> None:
        self._store, self._repository, self._limits = store, repository, limits
        self.changed = threading.Condition()
        self.closing = False
        self._states: dict[str, JobState] = {}  # oldest first
        self._owners: dict[str, str] = {}
        self._served: dict[str, int] = {}  # owner -> number of the last turn
        self._last_viewed: dict[str, float] = {}  # job -> monotonic seconds
        self._cancel_flags: dict[str, CancelFlags] = {}
        self._turns = 0
        self._positions: dict[str, int] | None = None  # queued job -> jobs ahead of it; None: to be recomputed
        for record in repository.recover():
            self._insert(repository.state(record), record.owner)
        self._delete_expired()

    def __len__(self) -> int:
        """Return the number of running and queued jobs."""
        with self.changed:
            return len(self._states)

    # Called by clients.

    def add(self, states: Sequence[JobState], owner: str) -> None:
        """Queue all of `states`, or none. Raises CapacityError."""
        with self.changed:
            self._drop_abandoned()
            owned = sum(1 for job in self._states if self._owners[job] == owner)
            check_capacity(len(states), owned, self._limits.per_owner, len(self._waiting()), self._limits.waiting)
            self._store.add(
                *(
                    Record(state.id, owner, JobSettings.of(state).to_json(), "queued", state.created, None, 0)
                    for state in states
                )
            )
            for state in states:
                self._insert(state, owner)
            self._positions = None
            self.changed.notify_all()

    def state(self, job: str) -> JobState | None:
        """Return the job's state. Returns None if it is final or unknown. Counts as a view of the job."""
        with self.changed:
            state = self._states.get(job)
            if state is not None:
                self._last_viewed[job] = time.monotonic()
                return replace(state, queue_position=self._position(job)) if state.status == "queued" else state
            return None

    def stop(self, job: str, after_round: bool) -> None:
        """End a queued job at once; set the cancellation flag of the running one."""
        with self.changed:
            state = self._states.get(job)
            if state is None:
                return
            if state.status == "queued":
                self.finish(job, Stopped())
                return
            flags = self._cancel_flags[job]
            (flags.after_round if after_round else flags.now).set()
            self._states[job] = replace(state, stopping="level" if after_round else "now")

    def delete(self, job: str) -> None:
        """Remove a job with its files. Raises RequestError if it is running, CapacityError if the disk is full."""
        with self.changed:
            state = self._states.get(job)
            if state is not None and state.status == "running":
                raise RequestError(*message("queue.still_running"))
            self._delete(job)

    def close(self) -> None:
        """Cancel the running job and end the worker. Queued jobs stay for the next start."""
        with self.changed:
            self.closing = True
            for flags in self._cancel_flags.values():
                flags.now.set()
            self.changed.notify_all()

    def wake(self) -> None:
        """Notify the worker of something to do besides jobs."""
        with self.changed:
            self.changed.notify_all()

    # Called by the worker.

    def start_next(self) -> tuple[JobState, CancelFlags] | None:
        """Mark the next job as running. Returns None if the queue is empty.

        Raises CapacityError if the database is not writable; then no job starts.
        """
        with self.changed:
            self._drop_abandoned()
            order = self._order()
            if not order:
                return None
            job = order[0]
            self._store.start(job, time.time())
            self._turns += 1
            self._positions = None
            self._served[self._owners[job]] = self._turns
            self._cancel_flags[job] = CancelFlags()
            self._states[job] = replace(self._states[job], status="running", queue_position=None, stage="load")
            return self._states[job], self._cancel_flags[job]

    def log(self, job: str, entry: LogEntry) -> None:
        """Append an entry to the log of the running job. Raises CapacityError if the database is not writable."""
        self._store.append(job, time.time(), entry)
        self.update(job, lambda state: apply_log_entry(state, entry))

    def update(self, job: str, change: Callable[[JobState], JobState]) -> None:
        """Replace the state in memory only."""
        with self.changed:
            self._states[job] = change(self._states[job])

    def finish(self, job: str, ending: FinalEntry) -> None:
        """Make the job final; does nothing if it already is.

        Raises CapacityError if the database is not writable; then the job is not final.
        """
        with self.changed:
            if job not in self._states:
                return
            ending = replace(ending, tokens_done=self._states[job].tokens_done)
            self._store.finish(job, time.time(), ending, self._repository.artifacts(job).size())
            self._remove(job)
            if not self._states:
                self._served.clear()  # once the queue is empty all owners are equal again
            with suppress(CapacityError):  # a full disk; retried after the next job
                self._delete_expired()
            self.changed.notify_all()

    # Called with `changed` held.

    def _insert(self, state: JobState, owner: str) -> None:
        self._states[state.id], self._owners[state.id] = state, owner
        self._last_viewed[state.id] = time.monotonic()

    def _waiting(self) -> list[str]:
        return [job for job, state in self._states.items() if state.status == "queued"]

    def _order(self) -> list[str]:
        return fair_order([(job, self._owners[job]) for job in self._waiting()], self._served, self._turns)

    def _position(self, job: str) -> int:
        if self._positions is None:
            running = sum(1 for state in self._states.values() if state.status == "running")
            self._positions = {job: running + index for index, job in enumerate(self._order())}
        return self._positions[job]

    def _drop_abandoned(self) -> None:
        limit = self._limits.abandoned_seconds
        if limit is None:
            return
        now = time.monotonic()
        for job in self._waiting():
            if now - self._last_viewed[job] > limit:
                reason = message("queue.left_alone")
                self.finish(job, Stopped(reason=reason))

    def _delete_expired(self) -> None:
        for job in self._repository.expired(self._limits.keep_bytes, self._limits.keep_seconds):
            self._delete(job)

    def _delete(self, job: str) -> None:
        self._repository.delete(job)
        self._remove(job)

    def _remove(self, job: str) -> None:
        for table in (self._states, self._owners, self._cancel_flags, self._last_viewed):
            table.pop(job, None)
        self._positions = None
