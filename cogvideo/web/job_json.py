"""A job as the JSON object that the page's scripts (`assets/web/*.js`) show. No Gradio."""

from __future__ import annotations

from cogvideo.config import Preset
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.state import JobState
from cogvideo.request import tokens_per_stage
from cogvideo.web.form import Form


def screen_value(state: JobState, preset: Preset, default_model: str) -> JsonObject:
    """Return what the screen shows of a job, the same for all viewers. Links omit `default_model`."""
    request = state.request
    extra = Form.from_request(request, preset.sampling).query(Form.default(preset))
    extra |= {"m": state.model} if state.model not in ("", default_model) else {}
    extra |= {"ff": "1"} if request.first_frame else {}
    return {
        "id": state.id,
        "status": state.status,
        "prompt": request.prompt,
        "seed": request.seed,
        "frames": request.num_frames,
        "seconds": request.duration,
        "superres": request.superres,
        "rounds": request.rounds,
        "extra": extra,
        "model": state.model,
        "seeds": request.seeds,
        "drafts": request.num_drafts,
        "started": request.initial_tokens is not None,
        "parts": (state.loading.done, state.loading.total) if state.loading else None,
        "smaller": state.next_preset,
        "keyframes": state.keyframes,
        "painting": (state.preview.index, *state.preview.images) if state.preview else None,
        "level": state.round,
        "video": state.video,
        "strip": state.strip,
        "count": state.num_frames,
        "poster": state.poster,
        "stage": state.stage,
        "done": state.tokens_done,
        "total": state.tokens_total,
        "plan": tokens_per_stage(preset.model, request),
        "left": state.seconds_left,
        "place": state.queue_position,
        "stopping": state.stopping,
        "error": state.error,
        "notes": state.notes,
    }


def card_value(state: JobState) -> JsonObject:
    """Return what a card of the history shows of a job."""
    request = state.request
    return {
        "id": state.id,
        "status": state.status,
        "prompt": request.prompt,
        "seed": request.seed,
        "frames": request.num_frames,
        "seconds": request.duration,
        "drafts": request.num_drafts,
        "poster": state.poster,
        "keyframes": state.keyframes[:1],
    }
