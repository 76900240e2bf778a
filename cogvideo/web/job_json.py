"""A job as JSON for the page's scripts in `assets/web`."""

from __future__ import annotations

from typing import Any

from cogvideo.config import Preset
from cogvideo.jobs.state import JobState
from cogvideo.request import tokens_per_stage
from cogvideo.web.form import Form


def screen_value(view: JobState, preset: Preset, own: str) -> dict[str, Any]:
    """What the screen draws of a job, the same for everybody who looks. `own`: the model that links need not name."""
    request = view.request
    extra = Form.of(request, preset.sampling).query(Form.default(preset))
    extra |= {"m": view.model} if view.model not in ("", own) else {}
    extra |= {"ff": "1"} if request.first_frame else {}
    return {
        "id": view.id,
        "status": view.status,
        "prompt": request.prompt,
        "seed": request.seed,
        "frames": request.num_frames,
        "seconds": request.duration,
        "superres": request.superres,
        "rounds": request.rounds,
        "extra": extra,
        "model": view.model,
        "seeds": request.seeds,
        "drafts": request.num_drafts,
        "started": request.initial_tokens is not None,
        "parts": view.parts,
        "smaller": view.smaller,
        "keyframes": view.keyframes,
        "painting": view.painting,
        "level": view.level,
        "video": view.video,
        "strip": view.strip,
        "count": view.frames,
        "poster": view.poster,
        "stage": view.stage,
        "done": view.done,
        "total": view.total,
        "plan": tokens_per_stage(preset.model, request),
        "left": view.seconds_left,
        "place": view.place,
        "stopping": view.stopping,
        "error": view.error,
        "notes": view.notes,
    }


def card_value(view: JobState) -> dict[str, Any]:
    """What a card of the history draws of a job."""
    request = view.request
    return {
        "id": view.id,
        "status": view.status,
        "prompt": request.prompt,
        "seed": request.seed,
        "frames": request.num_frames,
        "seconds": request.duration,
        "drafts": request.num_drafts,
        "poster": view.poster,
        "keyframes": view.keyframes[:1],
    }
