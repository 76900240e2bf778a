"""Wishes in, videos out: a bounded fair queue, one worker that owns the model, and a log that survives everything.

A `VideoRequest` goes in with the key of whoever asks; a random id comes out. Whoever has the id may watch; whoever has
the key may stop and delete. Nothing here imports torch: the pipeline is made by a factory, in the worker's thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import shutil
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from cogvideo.choice import default_model
from cogvideo.config import PRESETS, Preset, VideoRequest
from cogvideo.errors import Cancelled, CapacityError, CogVideoError, RequestError
from cogvideo.events import Done, Event, LevelDone
from cogvideo.pace import Pace, tokens_per_stage
from cogvideo.results import EXPORTS, Folder, WriteVideo
from cogvideo.store import Entry, Record, Store
from cogvideo.take import Take
from cogvideo.video import read_metadata, write_video
from cogvideo.view import ACTIVE, FINAL, Sentence, View, fold, request_from_dict, request_to_dict

if TYPE_CHECKING:
    from cogvideo.text import CheckedPrompt, Reading

LOG = logging.getLogger(__name__)

GONE = RequestError(
    "没有找到这段视频：它可能已被删除，或链接不完整。",
    "There is no such video: it may have been deleted, or the link is incomplete.",
)
FORBIDDEN = RequestError(
    "只有提交者可以停止或删除这段视频：您可以用同样的设置自己生成一段。",
    "Only the person who asked for this video may stop or delete it: make your own with the same settings.",
)


class Pipeline(Protocol):
    """What jobs need of a pipeline (`cogvideo.pipeline.CogVideoPipeline`)."""

    def check(self, request: VideoRequest) -> CheckedPrompt:
        """What the model reads, and notes about it. Raises RequestError."""
        ...

    def read(self, request: VideoRequest) -> Reading:
        """The prompt as the model reads it. Raises RequestError."""
        ...

    def load(self) -> None:
        """Reads the weights now instead of at the first token. Raises WeightsError, CapacityError."""
        ...

    def stream(self, request: VideoRequest, stop: Callable[[], bool] | None = None) -> Generator[Event, None, None]:
        """Yields events; asks `stop` once per token and raises Cancelled once it says True."""
        ...


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
    preview_seconds: float = 0.2
    """Least time between two pictures of a keyframe that is being painted."""
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
    """

    def __init__(
        self,
        data: Path,
        preset: Preset,
        pipeline: Callable[[], Pipeline],
        video_writer: WriteVideo,
        limits: Limits | None = None,
    ) -> None:
        self.preset = preset
        self.limits = limits or Limits()
        self.results = data / "results"
        self._make_pipeline, self._write_video = pipeline, video_writer
        self._made: Pipeline | None = None
        self._making = threading.Lock()
        self._exporting = threading.Lock()
        self.results.mkdir(parents=True, exist_ok=True)
        self._lock_file = _lock_folder(data)
        self._store = Store(data / "jobs.sqlite")
        self._changed = threading.Condition()  # guards everything below
        self._views: dict[str, View] = {}  # active jobs, oldest first
        self._owners: dict[str, str] = {}
        self._served: dict[str, int] = {}  # owner -> number of the turn last given
        self._seen: dict[str, float] = {}  # job -> when somebody last looked, monotonic
        self._stops: dict[str, Stop] = {}
        self._turns = 0
        self._places: dict[str, int] | None = None  # waiting job -> jobs before it; None: to be counted anew
        self._closing = False
        self._worker: threading.Thread | None = None
        self._recover()

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

    def submit(self, request: VideoRequest, key: str, comment: bool = True) -> View:
        """Checks the request and queues it. Raises RequestError and CapacityError; then nothing is stored."""
        owner = owner_of(key)
        checked = self._pipeline().check(request)
        now = time.time()
        view = View(
            id=secrets.token_urlsafe(16),
            status="queued",
            request=replace(request, prompt=checked.text),
            created=now,
            notes=tuple((note.zh, note.en) for note in checked.notes),
            comment=comment,
            total=sum(tokens_per_stage(self.preset.model, request).values()),
        )
        with self._changed:
            self._refuse_when_full(owner)
            self._store.add(Record(view.id, owner, _stored(view), "queued", now, None, 0))
            self._views[view.id], self._owners[view.id] = view, owner
            self._seen[view.id] = time.monotonic()
            self._places = None
            self._changed.notify_all()
        return self.view(view.id)

    def read(self, request: VideoRequest) -> Reading:
        """The prompt as the model reads it, piece by piece. Raises RequestError."""
        return self._pipeline().read(request)

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
        return self.submit(view.request, key, view.comment)

    # What people see.

    def view(self, job: str) -> View:
        """The job as it is now. Raises RequestError where there is none."""
        with self._changed:
            view = self._views.get(job)
            if view is not None:
                self._seen[job] = time.monotonic()
                return replace(view, place=self._place(job)) if view.status == "queued" else view
        record = self._store.job(job)
        if record is None:
            raise GONE
        return self._restore(record)

    def holds(self, job: str, key: str) -> bool:
        """Whether the job belongs to `key`."""
        record = self._store.job(job)
        return record is not None and secrets.compare_digest(record.owner, owner_of(key))

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

    def estimate(self, request: VideoRequest) -> float | None:
        """Seconds that `request` would take once it runs, as far as speeds were measured."""
        plan = tokens_per_stage(self.preset.model, request)
        return self._pace().seconds_left(plan, 0)

    def file(self, job: str, name: str) -> Path | None:
        """The path of one of a job's files; None where there is none, whatever the two strings hold.

        A gif and a zip of the frames are made when they are first asked for.
        """
        folder = self.results / job
        if not _plain(job) or not folder.is_dir():
            return None
        if name in EXPORTS:
            return self._export(job, name)
        return next((path for path in folder.iterdir() if path.name == name and not name.startswith(".")), None)

    def _export(self, job: str, name: str) -> Path | None:
        record = self._store.job(job)
        if record is None or record.status not in FINAL:
            return None
        view = self._restore(record)
        folder = self._folder(job)
        with self._exporting:  # once, however many ask
            path = folder.export(name, view.request, self._comment(view))
        self._store.resize(job, folder.size())
        return path

    # The queue. All of these are called with the lock held.

    def _refuse_when_full(self, owner: str) -> None:
        mine = sum(1 for job in self._views if self._owners[job] == owner)
        if mine >= self.limits.per_owner:
            raise CapacityError(
                f"您已有 {mine} 段视频在生成或排队，最多 {self.limits.per_owner} 段：请等其中一段完成，或停止一段。",
                f"You have {mine} videos running or waiting, {self.limits.per_owner} at most: "
                "wait for one to finish, or stop one.",
            )
        waiting = sum(1 for view in self._views.values() if view.status == "queued")
        if waiting >= self.limits.waiting:
            raise CapacityError(
                f"排队的视频已有 {waiting} 段，队列满了：请过几分钟再试，您填写的内容会保留。",
                f"{waiting} videos are waiting and the queue is full: try again in a few minutes; "
                "what you typed stays.",
            )

    def _order(self) -> list[str]:
        """Waiting jobs in the order in which they will run: owners take turns, each owner's own jobs in order."""
        turn = self._turns
        theirs: dict[str, deque[tuple[int, str]]] = defaultdict(deque)  # owner -> their jobs, with age in the queue
        for age, (job, view) in enumerate(self._views.items()):
            if view.status == "queued":
                theirs[self._owners[job]].append((age, job))
        turns = [(self._served.get(owner, 0), *waiting[0], owner) for owner, waiting in theirs.items()]
        heapify(turns)
        order: list[str] = []
        while turns:
            _, _, job, owner = heappop(turns)  # the oldest job of the least recently served
            order.append(job)
            turn += 1
            theirs[owner].popleft()
            if theirs[owner]:
                heappush(turns, (turn, *theirs[owner][0], owner))
        return order

    def _place(self, job: str) -> int:
        if self._places is None:
            running = sum(1 for view in self._views.values() if view.status == "running")
            self._places = {job: running + index for index, job in enumerate(self._order())}
        return self._places[job]

    def _claim(self) -> str | None:
        """Waits for the next job and marks it running; None when the server closes."""
        with self._changed:
            while not self._closing:
                self._drop_abandoned()
                order = self._order()
                if order:
                    return self._begin(order[0])
                self._changed.wait(self.limits.abandoned_seconds)
            return None

    def _begin(self, job: str) -> str:
        self._turns += 1
        self._places = None
        self._served[self._owners[job]] = self._turns
        self._stops[job] = Stop()
        self._store.move(job, time.time(), "running", {})
        self._views[job] = replace(self._views[job], status="running", place=None, stage="load")
        return job

    def _drop_abandoned(self) -> None:
        limit = self.limits.abandoned_seconds
        if limit is None:
            return
        now = time.monotonic()
        for job in [job for job, view in self._views.items() if view.status == "queued"]:
            if now - self._seen.get(job, now) > limit:
                error = ("很久没有人查看，已取消排队。", "Nobody looked at it for a while, so it left the queue.")
                self._finish(job, "stopped", {"error": error})

    def _finish(self, job: str, status: str, data: dict[str, Any]) -> None:
        self._store.finish(job, time.time(), status, data, self._folder(job).size())
        for table in (self._views, self._owners, self._stops, self._seen):
            table.pop(job, None)
        self._places = None
        if not self._views:
            self._served.clear()  # with an empty queue all owners are equal again
        self._tidy()
        self._changed.notify_all()

    # What is kept.

    def _recover(self) -> None:
        """After a restart: waiting jobs wait on, in their order; a running one was interrupted."""
        for record in self._store.with_status(["running"]):
            kept = _last_clip(self._store.log(record.id))
            self._store.finish(record.id, time.time(), "interrupted", kept, self._folder(record.id).size())
        for record in self._store.with_status(["queued"]):
            self._views[record.id] = self._restore(record)
            self._owners[record.id] = record.owner
            self._seen[record.id] = time.monotonic()
        known = {record.id for record in self._store.with_status([*ACTIVE, *FINAL])}
        for folder in self.results.iterdir():
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)
        self._tidy()

    def _restore(self, record: Record) -> View:
        """The view of a job, from its row and its log alone."""
        stored = record.request
        request = request_from_dict(stored["request"])
        view = View(
            id=record.id,
            status=record.status,
            request=request,
            created=record.created,
            notes=tuple((zh, en) for zh, en in stored["notes"]),
            comment=stored["comment"],
            total=sum(tokens_per_stage(self.preset.model, request).values()),
        )
        for entry in self._store.log(record.id):
            view = fold(view, entry.kind, entry.data)
        return view

    def _tidy(self) -> None:
        """Removes finished jobs that are too old, then the oldest ones until the rest fits."""
        kept = 0
        oldest = time.time() - self.limits.keep_seconds
        for record in reversed(self._store.with_status(FINAL)):
            kept += record.bytes
            if kept > self.limits.keep_bytes or (record.finished or record.created) < oldest:
                self._forget(record.id)

    def _forget(self, job: str) -> None:
        self._store.delete(job)
        for table in (self._views, self._owners, self._seen):
            table.pop(job, None)
        self._places = None
        shutil.rmtree(self.results / job, ignore_errors=True)

    def _demand(self, job: str, key: str) -> None:
        if self._store.job(job) is None:
            raise GONE
        if not self.holds(job, key):
            raise FORBIDDEN

    def _pipeline(self) -> Pipeline:
        """The one pipeline, made by whoever needs it first: the check at the door or the worker."""
        with self._making:
            if self._made is None:
                self._made = self._make_pipeline()
            return self._made

    def _folder(self, job: str) -> Folder:
        return Folder(self.results / job, self._write_video)

    def _pace(self) -> Pace:
        prefix = f"speed:{self.preset.name}:"
        return Pace({name.removeprefix(prefix): float(value) for name, value in self._store.settings(prefix).items()})

    # The worker. Everything below runs in its thread.

    def _work(self, preload: bool) -> None:
        if preload:
            try:
                self._pipeline().load()
            except Exception:  # the first job meets the same error and shows it to a person
                LOG.exception("The model could not be loaded ahead of time")
        while job := self._claim():
            try:
                self._run(job, self._pipeline())
            except Exception as error:
                LOG.exception("Job failed")
                self._end(job, "failed", {"error": _sentence(error)})

    def _run(self, job: str, pipeline: Pipeline) -> None:
        """Draws one video. Returns once the pipeline has let go of the accelerator."""
        with self._changed:
            view, stop = self._views[job], self._stops[job]
        plan = tokens_per_stage(self.preset.model, view.request)
        take = Take(self._folder(job), view.request, plan, self._pace(), self.limits.preview_seconds)
        try:
            with closing(pipeline.stream(view.request, stop.now.is_set)) as events:
                for event in events:
                    self._hear(job, take, event)
                    if stop.now.is_set() and not isinstance(event, Done):
                        raise Cancelled
                    if stop.after_level.is_set() and isinstance(event, LevelDone):
                        raise Cancelled
        except Cancelled:
            self._end(job, "interrupted" if self._closing else "stopped", take.kept(self._comment(view)))
        except CogVideoError as error:
            LOG.warning("Job refused by the pipeline: %s", error)
            self._end(job, "failed", {**take.kept(None), "error": _sentence(error)})
        else:
            if take.finished is None:
                raise RuntimeError("The pipeline ended without its last event")
            self._end(job, "done", take.last("final", take.finished, self._comment(view)))
        for stage, speed in take.pace.speeds().items():
            self._store.keep(f"speed:{self.preset.name}:{stage}", repr(speed))

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
            if job in self._views:
                self._finish(job, status, {**data, "done": self._views[job].done})

    def _comment(self, view: View) -> dict[str, Any] | None:
        """What is written into the video file; None where the person opted out."""
        if not view.comment:
            return None
        return {"app": "CogVideo for everyone", "model": self.preset.name, **request_to_dict(view.request)}


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
    model = model or default_model(device)
    preset = PRESETS.get(model)
    if preset is None:
        names = ", ".join(PRESETS)
        raise RequestError(
            f"没有名为 {model} 的模型：可用的有 {names}。", f"There is no model called {model}: there are {names}."
        )

    def make() -> Pipeline:
        from cogvideo.pipeline import CogVideoPipeline

        return CogVideoPipeline.from_pretrained(model, device, eight_bit=eight_bit, offload=offload, memory=memory)

    return Jobs(data, preset, make, write_video, limits)


def owner_of(key: str) -> str:
    """What is stored of a key. Raises RequestError where the key is too short to be a secret."""
    if len(key) < 16:
        raise RequestError("缺少密钥：请重新载入页面。", "The key is missing: reload the page.")
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A key for one browser or one program: whoever has it may stop and delete what was asked for with it."""
    return secrets.token_urlsafe(24)


def read_settings(path: Path) -> VideoRequest | None:
    """The request inside an mp4 or gif of ours, None where there is none. Raises RequestError for impossible values."""
    settings = read_metadata(path)
    if not settings or not isinstance(settings.get("prompt"), str):
        return None
    known = {field.name for field in fields(VideoRequest)}
    try:
        return request_from_dict({name: value for name, value in settings.items() if name in known})
    except (TypeError, ValueError, AttributeError):  # JSON of somebody else's making
        return None


def new_seed() -> int:
    return secrets.randbits(32)


def _stored(view: View) -> dict[str, Any]:
    return {"request": request_to_dict(view.request), "notes": view.notes, "comment": view.comment}


def _last_clip(log: list[Entry]) -> dict[str, Any]:
    clips = [entry.data for entry in log if entry.kind == "level"]
    return {name: clips[-1][name] for name in ("video", "strip", "poster", "frames")} if clips else {}


def _sentence(error: Exception) -> Sentence:
    if isinstance(error, CogVideoError):
        return error.zh, error.en
    kind = type(error).__name__
    return (
        f"生成时出现意外错误（{kind}），详情见服务器日志：可以用同样的设置再试一次。",
        f"Something unexpected went wrong ({kind}); the server's log has the details: "
        "you can try the same settings again.",
    )


def _plain(name: str) -> bool:
    return 0 < len(name) <= 64 and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)


def _lock_folder(data: Path) -> IO[str]:
    """Holds the data folder for this process; the system lets go of it when the process ends, however it ends."""
    file = (data / "lock").open("w")
    try:
        import fcntl
    except ImportError:  # Windows: nothing of the kind; starting twice is then up to the user
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise CapacityError(
            f"另一个服务正在使用数据文件夹 {data}：请关闭它，或用 --data 指定另一个文件夹。",
            f"Another server uses the data folder {data}: close it, or name another folder with --data.",
        ) from None
    return file
