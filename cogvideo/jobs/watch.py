"""One reader for each job that is watched, however many watch it. No torch, no web framework.

In: the views of `Jobs.follow`. Out: JSON objects, the first one whole, each later one holding only what has changed.
Whoever is slow gets the newest state and misses what lay between; nobody waits for anybody else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from cogvideo.errors import RequestError
from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import JobState

Value = dict[str, Any]


class JobWatcher:
    """What can be watched of `jobs`. Belongs to one event loop; costs nothing while nobody watches.

    `show`: a view as the plain data that watchers get. `beat`: seconds between signs of life of an unchanged job.
    """

    def __init__(self, jobs: JobService, show: Callable[[JobState], Value], beat: float) -> None:
        self._jobs, self._show, self._beat = jobs, show, beat
        self._readers: dict[str, _Reader] = {}

    def now(self, job: str) -> Value:
        """What is to be seen of the job at this moment, for pages that nobody looks at. Raises RequestError."""
        return self._show(self._jobs.state(job))

    async def watch(self, job: str) -> AsyncIterator[str]:
        """JSON texts until the job is final; "" is a sign of life. A job that is not there ends with {"gone": job}."""
        reader = self._readers.get(job)
        if reader is None:
            reader = self._readers[job] = _Reader()
            reader.task = asyncio.create_task(self._read(job, reader))
        reader.watchers += 1
        seen = ClientCursor()
        try:
            while True:
                news = await reader.news(seen, self._beat)
                if news is None:
                    return
                yield news
        finally:
            reader.watchers -= 1
            if not reader.watchers:
                self._drop(job, reader)

    async def _read(self, job: str, reader: _Reader) -> None:
        try:
            async for view in self._jobs.follow(job):
                reader.publish(self._show(view))
        except RequestError:  # deleted meanwhile, or never there
            reader.publish({"gone": job})
        finally:
            reader.end()
            self._drop(job, reader)

    def _drop(self, job: str, reader: _Reader) -> None:
        if self._readers.get(job) is reader:
            del self._readers[job]
        if reader.task and not reader.ended:
            reader.task.cancel()


class ClientCursor:
    """What one watcher was told last."""

    def __init__(self) -> None:
        self.number = 0
        self.value: Value = {}


class _Reader:
    """The newest value of one job, and its changes since each value that some watcher still has."""

    def __init__(self) -> None:
        self.watchers = 0
        self.ended = False
        self.task: asyncio.Task[None] | None = None
        self._number = 0
        self._value: Value = {}
        self._texts: dict[int, str] = {}  # number of the value that a watcher has -> what has changed since
        self._changed = asyncio.Event()

    def publish(self, value: Value) -> None:
        if value == self._value:
            return  # what changed is not shown
        self._number += 1
        self._value = value
        self._texts.clear()
        self._wake()

    def end(self) -> None:
        self.ended = True
        self._wake()

    async def news(self, seen: ClientCursor, beat: float) -> str | None:
        """What the watcher does not know yet, as soon as there is any; None after the end."""
        if seen.number == self._number and not self.ended:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), beat)
        if seen.number == self._number:
            return None if self.ended else ""
        text = self._texts.get(seen.number)
        if text is None:
            text = self._texts[seen.number] = _changes(seen.value, self._value)
        seen.number, seen.value = self._number, self._value
        return text

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()  # the next change has an event of its own


def _changes(before: Value, after: Value) -> str:
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    return json.dumps(changed, ensure_ascii=False)
