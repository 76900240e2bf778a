"""What the event handlers share: access to jobs and components, and the display of errors."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cogvideo.errors import CogVideoError
from cogvideo.events import Frames
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.service import JobService
from cogvideo.jobs.state import JobState
from cogvideo.media.images import data_uri
from cogvideo.request import VideoRequest
from cogvideo.token_frames import TokenFrames
from cogvideo.web import job_json
from cogvideo.web.components import Components, FormContext
from cogvideo.web.form import Form, first_frame_value
from cogvideo.web.model_options import ModelPlacement, has_memory_choice
from cogvideo.web.session import Session
from cogvideo.web.strings import Strings, notice_html
from cogvideo.web.updates import PageUpdates, Updates, merged

LOG = logging.getLogger(__name__)


class HandlerContext:
    """Jobs, components and gallery of one page, and the updates that several handlers need."""

    def __init__(
        self, jobs: JobService, components: Components, strings: Strings, gallery: Sequence[JsonObject]
    ) -> None:
        self.jobs, self.components, self.gallery = jobs, components, gallery
        self.default_model = jobs.preset.name
        self.updates = PageUpdates(components, strings, list(jobs.models.entries.values()))
        self.text = strings.text
        self.strings = strings

    def screen(self, job: str, key: str) -> JsonObject:
        """Return the screen's value for a job. While the job is active, the screen then watches it (`/watch`)."""
        state = self.jobs.state(job)
        value = job_json.screen_value(state, self.jobs.models.preset(state.model), self.default_model)
        return {**value, "mine": self.jobs.is_owner(job, key)}

    def history(self, session: Session) -> list[JsonObject]:
        return [job_json.card_value(state) for state in self.jobs.history(session.key)]

    def form_of(self, state: JobState) -> Form:
        return Form.from_request(state.request, self.jobs.models.preset(state.model).sampling)

    def default_form(self, model: str) -> Form:
        return Form.default(self.jobs.models.entry(model).preset)

    def form_context(self, language: str, model: str) -> FormContext:
        """Return the context of labels and choices. Raises RequestError for an unknown model."""
        entry = self.jobs.models.entry(model)
        config = entry.preset.model
        summary = self.jobs.models.memory_summary(model) if has_memory_choice(config) else None
        return FormContext(language, entry, ModelPlacement(config, *summary) if summary else None)

    def fill(self, form: Form, language: str, model: str, first_frame: JsonObject | None = None) -> Updates:
        """Show a form and its estimate."""
        filled = self.updates.fill(form, self.form_context(language, model), first_frame)
        return merged(filled, self.estimate(form, language, model))

    def fill_from_job(self, state: JobState, language: str) -> Updates:
        """Show the form of a job, seed included."""
        return self.fill(self.form_of(state), language, state.model, first_frame_of(state))

    def estimate(self, form: Form, language: str, model: str, memory: str = "") -> Updates:
        request = VideoRequest("", 0, form.num_frames, form.duration, form.superres)
        seconds = self.jobs.models.estimate(request, model, memory or None)
        return self.updates.estimate(form, language, seconds, self.jobs.queue_length())

    def first_frame(self, tokens: TokenFrames, model: str, image: Frames | None = None) -> JsonObject:
        """Return the page's value of a first frame. `image`: the uploaded one [H, W, 3], if any."""
        seen = data_uri(self.jobs.models.decode(tokens, model)[0])
        return first_frame_value(tokens, seen, None if image is None else data_uri(image))

    def notice(self, language: str, key: str) -> Updates:
        return {self.components.notice: notice_html(self.text(language, key))}


class HasContext(Protocol):
    """A group of handlers."""

    context: HandlerContext


def show_errors(handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """Wrap a handler: it gets a `Session`, and its errors become a notice, with no other update."""

    @functools.wraps(handler)
    def wrapper(self: HasContext, session: Any, *values: Any) -> Updates:
        current = Session.from_browser(session)
        try:
            return handler(self, current, *values)
        except CogVideoError as error:
            message = error.message(current.language)
        except Exception:
            LOG.exception("%s failed", handler.__qualname__)
            message = self.context.text(current.language, "unexpected")
        return {self.context.components.notice: notice_html(message, "error")}

    return wrapper


def first_frame_of(state: JobState) -> JsonObject | None:
    """Return the page's value of a job's given first frame, with the job's first image as the decoded one."""
    if state.request.first_frame is None:
        return None
    image = state.keyframes[0] if state.keyframes else state.poster
    return first_frame_value(state.request.first_frame, f"media/{state.id}/{image}" if image else "")
