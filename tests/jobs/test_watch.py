"""Many people watch one job: one reader serves them all, and each hears only what is new to them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import pairwise
from typing import Any

import pytest

from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import JobState
from cogvideo.jobs.watch import JobWatcher
from cogvideo.request import VideoRequest
from tests.support.fakes import FakePipeline

KEY = "k" * 20
REQUEST = VideoRequest("一只熊猫", seed=7, num_frames=9, superres=False)


class Shown:
    """Counts how often a view was made ready for watchers."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, view: JobState) -> dict[str, Any]:
        self.times += 1
        return {"id": view.id, "status": view.status, "done": view.tokens_done, "keyframes": list(view.keyframes)}


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(300):
            await work()

    asyncio.run(limited())


async def hear(live: JobWatcher, job: str) -> list[dict[str, Any]]:
    """The whole picture that a watcher had after each message."""
    seen: list[dict[str, Any]] = []
    async for text in live.watch(job):
        if text:
            seen.append({**(seen[-1] if seen else {}), **json.loads(text)})
    return seen


def test_fifty_watchers_share_one_reader(jobs: JobService, fake: FakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    show, follow = Shown(), jobs.follow
    states: list[int] = []  # of each reader

    async def counted(job: str) -> AsyncIterator[JobState]:
        states.append(0)
        async for state in follow(job):
            states[-1] += 1
            yield state

    monkeypatch.setattr(jobs, "follow", counted)
    live = JobWatcher(jobs, show, heartbeat_seconds=60)
    job = jobs.submit(REQUEST, KEY).id

    async def work() -> None:
        watchers = [asyncio.create_task(hear(live, job)) for _ in range(50)]
        witness = live.watch(job)
        for count in range(1, 6):
            fake.step(2)
            async for text in witness:
                if len(json.loads(text).get("keyframes", [])) == count:
                    break
        fake.open()
        async for _ in witness:
            pass
        told = await asyncio.gather(*watchers)
        for seen in told:
            assert seen[-1]["status"] == "done" and len(seen[-1]["keyframes"]) == 5
            assert [value["done"] for value in seen] == sorted(value["done"] for value in seen)
            assert all(before != after for before, after in pairwise(seen))
            assert {len(value["keyframes"]) for value in seen} >= {1, 2, 3, 4, 5}
        assert states == [show.times]

    run(work)


def test_first_message_is_complete_and_later_ones_contain_changes(jobs: JobService, fake: FakePipeline) -> None:
    live = JobWatcher(jobs, Shown(), heartbeat_seconds=60)
    job = jobs.submit(REQUEST, KEY).id

    async def work() -> None:
        early = live.watch(job)
        assert set(json.loads(await anext(early))) == {"id", "status", "done", "keyframes"}
        fake.step(2)
        async for text in early:
            if "keyframes" in json.loads(text):
                break
        assert set(json.loads(text)) <= {"status", "done", "keyframes"}  # the id stays what it was
        late = live.watch(job)
        whole = json.loads(await anext(late))
        assert whole["id"] == job and len(whole["keyframes"]) == 1
        await early.aclose()
        await late.aclose()

    run(work)


def test_slow_watcher_skips_to_newest_state(jobs: JobService, fake: FakePipeline) -> None:
    live = JobWatcher(jobs, Shown(), heartbeat_seconds=60)
    job = jobs.submit(REQUEST, KEY).id

    async def work() -> None:
        slow = live.watch(job)
        await anext(slow)
        fake.open()
        assert (await hear(live, job))[-1]["status"] == "done"
        rest = [json.loads(text) async for text in slow]
        assert len(rest) == 1 and rest[0]["status"] == "done" and len(rest[0]["keyframes"]) == 5

    run(work)


def test_watch_of_missing_or_deleted_job_ends_with_gone(jobs: JobService) -> None:
    live = JobWatcher(jobs, Shown(), heartbeat_seconds=60)
    running, waiting = jobs.submit(REQUEST, KEY).id, jobs.submit(REQUEST, KEY).id

    async def work() -> None:
        assert await hear(live, "nothing") == [{"gone": "nothing"}]
        assert await hear(live, "../jobs.sqlite") == [{"gone": "../jobs.sqlite"}]
        watcher = asyncio.create_task(hear(live, waiting))
        witness = live.watch(waiting)
        await anext(witness)
        jobs.delete(waiting, KEY)
        assert (await watcher)[-1]["gone"] == waiting
        assert jobs.state(running).active
        await witness.aclose()

    run(work)


def test_unchanged_job_sends_heartbeats(jobs: JobService) -> None:
    live = JobWatcher(jobs, Shown(), heartbeat_seconds=0.01)
    first, second = jobs.submit(REQUEST, KEY).id, jobs.submit(REQUEST, KEY).id

    async def work() -> None:
        watcher = live.watch(second)
        assert json.loads(await anext(watcher))["status"] == "queued"
        assert [await anext(watcher) for _ in range(3)] == ["", "", ""]
        await watcher.aclose()

    run(work)
    assert jobs.state(first).active


def test_no_task_remains_after_last_watcher(jobs: JobService) -> None:
    live = JobWatcher(jobs, Shown(), heartbeat_seconds=60)
    job = jobs.submit(REQUEST, KEY).id

    async def work() -> None:
        for _ in range(3):  # come, look, go; the job goes on
            watchers = [live.watch(job) for _ in range(4)]
            for watcher in watchers:
                await anext(watcher)
            for watcher in watchers:
                await watcher.aclose()
            await asyncio.sleep(0)  # what was cancelled ends at its next turn
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(work)
    assert jobs.state(job).active
