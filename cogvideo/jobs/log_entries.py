"""Entries of a job's append-only log: frozen dataclasses, and the only place that converts them to and from JSON.

Kinds and keys are those of the first release: they stay, so that older builds can read the rows too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

from cogvideo.messages import BilingualText

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class VideoFiles:
    """Files of one video, relative to the job's folder, and its number of frames."""

    video: str
    strip: str
    poster: str
    frames: int

    @classmethod
    def from_json(cls, data: JsonObject) -> Self | None:
        """Read the files of an entry. Returns None if it contains none."""
        if "video" not in data:
            return None
        return cls(data["video"], data["strip"], data["poster"], data["frames"])


@dataclass(frozen=True)
class Queued:
    """The job was accepted."""

    kind: ClassVar[Literal["queued"]] = "queued"

    def to_json(self) -> JsonObject:
        return {}


@dataclass(frozen=True)
class Started:
    """The worker has taken the job."""

    kind: ClassVar[Literal["running"]] = "running"

    def to_json(self) -> JsonObject:
        return {}


@dataclass(frozen=True)
class KeyframeStored:
    """The image of keyframe `index` (0..4) is on disk. Drafts have one entry each, in turn."""

    kind: ClassVar[Literal["keyframe"]] = "keyframe"
    index: int
    file: str

    def to_json(self) -> JsonObject:
        return asdict(self)


@dataclass(frozen=True)
class RoundStored:
    """The video of interpolation round `round` (0: the keyframes alone) is on disk."""

    kind: ClassVar[Literal["level"]] = "level"
    round: int
    files: VideoFiles

    def to_json(self) -> JsonObject:
        return {"level": self.round, **asdict(self.files)}


@dataclass(frozen=True)
class Finished:
    """The video is complete."""

    kind: ClassVar[Literal["done"]] = "done"
    files: VideoFiles | None
    tokens_done: int | None = None

    def to_json(self) -> JsonObject:
        return _ending_json(self)


@dataclass(frozen=True)
class Stopped:
    """The job was cancelled by its owner, or by the queue for `reason`. `files`: what was complete."""

    kind: ClassVar[Literal["stopped"]] = "stopped"
    files: VideoFiles | None = None
    tokens_done: int | None = None
    reason: BilingualText | None = None

    def to_json(self) -> JsonObject:
        return _ending_json(self, {"error": self.reason} if self.reason else {})


@dataclass(frozen=True)
class Interrupted:
    """The server closed or was killed while the job was running. `files`: what was complete."""

    kind: ClassVar[Literal["interrupted"]] = "interrupted"
    files: VideoFiles | None = None
    tokens_done: int | None = None

    def to_json(self) -> JsonObject:
        return _ending_json(self)


@dataclass(frozen=True)
class Failed:
    """The job raised an error. `next_preset`: smaller memory preset to retry with, if memory was insufficient."""

    kind: ClassVar[Literal["failed"]] = "failed"
    error: BilingualText
    files: VideoFiles | None = None
    tokens_done: int | None = None
    next_preset: str | None = None

    def to_json(self) -> JsonObject:
        return _ending_json(self, {"error": self.error, "smaller": self.next_preset})


FinalEntry = Finished | Stopped | Interrupted | Failed
"""The last entry of a job; its `kind` is the job's status."""
LogEntry = Queued | Started | KeyframeStored | RoundStored | FinalEntry


def entry_from_json(kind: str, data: JsonObject) -> LogEntry | None:
    """Read the columns `kind` and `data` of a log row. Returns None for a kind that only newer versions write."""
    files, done = VideoFiles.from_json(data), data.get("done")
    match kind, files:
        case "queued", _:
            return Queued()
        case "running", _:
            return Started()
        case "keyframe", _:
            return KeyframeStored(data["index"], data["file"])
        case "level", VideoFiles():
            return RoundStored(data["level"], files)
        case "done", _:
            return Finished(files, done)
        case "stopped", _:
            return Stopped(files, done, _bilingual(data.get("error")))
        case "interrupted", _:
            return Interrupted(files, done)
        case "failed", _:
            return Failed(_bilingual(data.get("error")) or ("", ""), files, done, data.get("smaller"))
    return None


def _ending_json(entry: FinalEntry, extra: JsonObject | None = None) -> JsonObject:
    files = asdict(entry.files) if entry.files else {}
    done = {} if entry.tokens_done is None else {"done": entry.tokens_done}
    return {**files, **(extra or {}), **done}


def _bilingual(pair: list[str] | None) -> BilingualText | None:
    return (pair[0], pair[1]) if pair else None
