"""One reader per watched job, shared by all its watchers.

Watchers get JSON objects: the first is complete, each later one contains only what has changed. A slow watcher gets
the newest state and misses those in between; watchers do not wait for one another.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from cogvideo.errors import RequestError
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import JobState


class JobWatcher:
    """Watching of jobs within one event loop. Has no cost while no job is watched.

    Args:
        jobs: the jobs
        to_json: converts a state to the JSON object that watchers get
        heartbeat_seconds: time between two signs of life of an unchanged job
    """

    def __init__(self, jobs: JobService, to_json: Callable[[JobState], JsonObject], heartbeat_seconds: float) -> None:
        self._jobs, self._to_json, self._heartbeat_seconds = jobs, to_json, heartbeat_seconds
        self._readers: dict[str, _Reader] = {}

    def snapshot(self, job: str) -> JsonObject:
        """Return the current object of a job, for pages in the background. Raises RequestError."""
        return self._to_json(self._jobs.state(job))

    async def watch(self, job: str) -> AsyncIterator[str]:
        """Yield JSON texts until the job is final; "" is a sign of life.

        If the job does not exist or is deleted, the last text is {"gone": job}.
        """
        reader = self._readers.get(job)
        if reader is None:
            reader = self._readers[job] = _Reader()
            reader.task = asyncio.create_task(self._read(job, reader))
        reader.watchers += 1
        cursor = ClientCursor()
        try:
            while True:
                message = await reader.next_message(cursor, self._heartbeat_seconds)
                if message is None:
                    return
                yield message
        finally:
            reader.watchers -= 1
            if not reader.watchers:
                self._remove(job, reader)

    async def _read(self, job: str, reader: _Reader) -> None:
        try:
            async for state in self._jobs.follow(job):
                reader.publish(self._to_json(state))
        except RequestError:  # deleted meanwhile, or never there
            reader.publish({"gone": job})
        finally:
            reader.end()
            self._remove(job, reader)

    def _remove(self, job: str, reader: _Reader) -> None:
        if self._readers.get(job) is reader:
            del self._readers[job]
        if reader.task and not reader.ended:
            reader.task.cancel()


class ClientCursor:
    """The last object that one watcher has received."""

    def __init__(self) -> None:
        self.number = 0
        self.value: JsonObject = {}


class _Reader:
    """The newest object of one job, and the changes since each object that a watcher still has."""

    def __init__(self) -> None:
        self.watchers = 0
        self.ended = False
        self.task: asyncio.Task[None] | None = None
        self._number = 0
        self._value: JsonObject = {}
        self._messages: dict[int, str] = {}  # number of the watcher's object -> changes since
        self._changed = asyncio.Event()

    def publish(self, value: JsonObject) -> None:
        if value == self._value:
            return  # only fields that are not shown have changed
        self._number += 1
        self._value = value
        self._messages.clear()
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    async def next_message(self, cursor: ClientCursor, heartbeat_seconds: float) -> str | None:
        """Wait for a change and return it; "" after `heartbeat_seconds` without one, None after the end."""
        if cursor.number == self._number and not self.ended:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), heartbeat_seconds)
        if cursor.number == self._number:
            return None if self.ended else ""
        message = self._messages.get(cursor.number)
        if message is None:
            message = self._messages[cursor.number] = _changes(cursor.value, self._value)
        cursor.number, cursor.value = self._number, self._value
        return message

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()  # the next change has its own event


def _changes(before: JsonObject, after: JsonObject) -> str:
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    return json.dumps(changed, ensure_ascii=False)
