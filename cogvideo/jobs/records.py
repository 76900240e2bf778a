"""Rows of the job database: a job with its settings, and one line of its log."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cogvideo.jobs.log_entries import LogEntry
from cogvideo.jobs.state import JobState, JobStatus
from cogvideo.messages import BilingualText
from cogvideo.request import VideoRequest, request_from_dict, request_to_dict


@dataclass(frozen=True)
class JobSettings:
    """The part of a job that is fixed when it is queued."""

    request: VideoRequest
    notes: tuple[BilingualText, ...]
    embed_settings: bool
    model: str
    """Empty in rows from before there was a choice of models."""
    memory: str | None

    @classmethod
    def of(cls, state: JobState) -> JobSettings:
        return cls(state.request, state.notes, state.embed_settings, state.model, state.memory)

    @classmethod
    def from_json(cls, text: str) -> JobSettings:
        """Read the column `request`. Raises RequestError if the stored request is invalid."""
        data = json.loads(text)
        return cls(
            request_from_dict(data["request"]),
            tuple((zh, en) for zh, en in data["notes"]),
            data["comment"],
            data.get("model") or "",
            data.get("memory"),
        )

    def to_json(self) -> str:
        """Convert to the column `request`, under the keys of the first release."""
        return json.dumps(
            {
                "request": request_to_dict(self.request),
                "notes": self.notes,
                "comment": self.embed_settings,
                "model": self.model,
                "memory": self.memory,
            }
        )


@dataclass(frozen=True)
class Record:
    """One row of `jobs`. `owner` is the hash of the submitter's key, never the key itself."""

    id: str
    owner: str
    settings: str  # JSON of JobSettings, parsed only if needed
    status: JobStatus
    created: float  # seconds since the epoch
    finished: float | None
    bytes: int


@dataclass(frozen=True)
class LoggedEntry:
    """One row of `log`. `seq` grows, possibly with gaps."""

    seq: int
    at: float  # seconds since the epoch
    entry: LogEntry
