"""What happens on the page: each method answers one event with updates of components. No model work, no torch.

One instance serves all visitors and remembers none of them: `me`, which their browser keeps, says who asks.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from cogvideo.config import MAX_DRAFTS
from cogvideo.errors import CogVideoError, RequestError
from cogvideo.jobs.artifacts import read_settings
from cogvideo.jobs.follow_ups import follow_up, kept_tokens
from cogvideo.jobs.service import JobService, new_key
from cogvideo.jobs.state import JobState
from cogvideo.media.images import data_uri, read_image
from cogvideo.request import VideoRequest, new_seed
from cogvideo.token_frames import TokenFrames, last_frame
from cogvideo.web import job_json, strings
from cogvideo.web.components import Components, FormContext, Updates, merged, notice_html
from cogvideo.web.form import Form, first_frame_value, form_from_values
from cogvideo.web.model_options import Held, large

LOG = logging.getLogger(__name__)


def _said(handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """A handler whose errors become a sentence on the page; nothing else changes then."""

    @functools.wraps(handler)
    def answer(self: Handlers, me: Any, *rest: Any) -> Updates:
        me = known(me)
        try:
            return handler(self, me, *rest)
        except CogVideoError as error:
            words = error.message(me["language"])
        except Exception:
            LOG.exception("The page could not answer")
            words = self.say(me["language"], "unexpected")
        return {self.parts.notice: notice_html(words, "error")}

    return answer


class Handlers:
    """The handlers of all events, by what people do."""

    def __init__(self, jobs: JobService, parts: Components, gallery: Sequence[dict[str, Any]]) -> None:
        self.jobs, self.parts, self.gallery = jobs, parts, gallery
        self.own = jobs.preset.name
        self.say = parts.words.text

    # Coming and going.

    def on_load(self, me: Any, request: gr.Request) -> Updates:
        """Somebody opens or reloads the page: their language, the job or the settings of the link, their history."""
        query = dict(request.query_params)
        me = known(me, query.get("lang") or request.headers.get("accept-language"))
        language = me["language"]
        model = query["m"] if query.get("m") in self.jobs.offers else self.own
        form, words, kind = self._from_link(query, model, language)
        view, start = None, None
        if "job" in query:
            try:
                view = self.jobs.state(query["job"])
            except RequestError as error:
                words, kind = (self.say(language, "shared_gone"), "") if form else (error.message(language), "error")
                words += self.say(language, "shared_without_start") if form and "ff" in query else ""
            else:
                model, start = view.model, _start_of_job(view)
                form, words = form or self._form_of(view), ""
        view = view or next((own for own in self.jobs.history(me["key"], 5) if own.active and not form), None)
        return self._entered(me, form, model, start, view) | {self.parts.notice: notice_html(words, kind)}

    def _entered(
        self, me: dict[str, str], form: Form | None, model: str, start: dict[str, Any] | None, view: JobState | None
    ) -> Updates:
        parts, language = self.parts, me["language"]
        usual = self._usual(model)
        updates = merged(parts.translate_labels(self._chosen(language, model)), self._rates(usual, language, model))
        updates = merged(updates, {parts.seed: gr.update(value=new_seed())})
        if form:
            updates = merged(updates, self._fill(form, language, model, start))
        value = self._screen(view.id, me["key"]) if view else {}
        if value.get("mine"):
            updates = merged(updates, {parts.fresh: gr.update(value=True)})
        return updates | {
            parts.session: me,
            parts.language: language,
            parts.reading: self.read(me, form.prompt if form else "", (form or usual).superres, model),
            parts.screen: {**value, "language": language},
            parts.shelf: self.history(me),
        }

    def change_language(
        self, me: Any, language: str, prompt: str, frames: int, seconds: float, superres: bool, model: str, memory: str
    ) -> Updates:
        """The page in another language."""
        me = {**known(me), "language": language}
        form = Form(num_frames=frames, duration=seconds, superres=superres)
        clothes = self.parts.translate_labels(self._chosen(language, model))
        clothes = merged(clothes, {self.parts.memory: gr.update(value=memory)})
        clothes = merged(clothes, self._rates(form, language, model, memory))
        return {**clothes, self.parts.session: me, self.parts.reading: self.read(me, prompt, superres, model)}

    # Asking for videos.

    @_said
    def submit(self, me: Any, *values: Any) -> Updates:
        """Puts what the form says into the queue, or says why not."""
        return self._submit(me, 1, *values)

    @_said
    def draft(self, me: Any, *values: Any) -> Updates:
        """As `submit`, but four strips of keyframes to choose from."""
        return self._submit(me, MAX_DRAFTS, *values)

    def _submit(self, me: dict[str, str], drafts: int, *values: Any) -> Updates:
        *form, model, memory, fresh, comment = values
        preset = self.jobs.offer(model).preset
        request = form_from_values(form, new_seed() if fresh else None).request(preset.sampling)
        view = self.jobs.submit(replace(request, num_drafts=drafts), me["key"], comment, model, memory or None)
        return self._asked(view, me)

    @_said
    def again(self, me: Any, event: gr.EventData) -> Updates:
        """New jobs from the one on the screen, with one thing changed; the first of them is shown."""
        drafts = [int(draft) for draft in event.drafts]
        view, *_ = follow_up(self.jobs, str(event.id), str(event.change), me["key"], drafts)
        updates = self._fill(self._form_of(view), me["language"], view.model, _start_of_job(view))
        return merged(updates, self._asked(view, me))

    def _asked(self, view: JobState, me: dict[str, str]) -> Updates:
        """A new job is on the screen."""
        language = me["language"]
        notes = "".join(zh if language == "zh" else f"{en} " for zh, en in view.notes)
        return {
            self.parts.session: me,
            self.parts.screen: {**self._screen(view.id, me["key"]), "asked": True},
            self.parts.notice: notice_html(notes),
            self.parts.seed: view.request.seed,
            self.parts.shelf: self.history(me),
        }

    # The screen and the shelf.

    @_said
    def show(self, me: Any, event: gr.EventData) -> Updates:
        """Puts a job of the history on the screen."""
        return {self.parts.screen: self._screen(str(event.id), me["key"]), self.parts.notice: ""}

    @_said
    def stop(self, me: Any, event: gr.EventData) -> Updates:
        self.jobs.stop(str(event.id), me["key"], after_level=bool(event.level))
        return {self.parts.notice: ""}

    @_said
    def remove(self, me: Any, event: gr.EventData) -> Updates:
        """Deletes a job; a screen that shows it is empty then (screen_watch.js asks for it)."""
        self.jobs.delete(str(event.id), me["key"])
        return {self.parts.shelf: self.history(me), self.parts.notice: ""}

    def refresh(self, me: Any, frames: int, seconds: float, superres: bool, model: str, memory: str) -> Updates:
        """Something has ended: the history, and how long the queue is now."""
        form = Form(num_frames=frames, duration=seconds, superres=superres)
        rates = self._rates(form, known(me)["language"], model, memory)
        return {self.parts.shelf: self.history(me), self.parts.outcome: rates[self.parts.outcome]}

    def history(self, me: Any) -> list[dict[str, Any]]:
        return [job_json.card_value(view) for view in self.jobs.history(known(me)["key"])]

    # Filling in the form.

    @_said
    def continue_video(self, me: Any, event: gr.EventData) -> Updates:
        """Fills the form so that the next video begins with the last frame of the one on the screen."""
        view = self.jobs.state(str(event.id))
        first = last_frame(kept_tokens(self.jobs, view.id))
        form = replace(self._form_of(view), seed=None, interpolation_seed=None)
        return self._fill(form, me["language"], view.model, self._begin(first, view.model)) | self._ready(me)

    @_said
    def look(self, me: Any, file: str | None, model: str) -> Updates:
        """Shows what the model sees of an uploaded picture, which then is the first frame."""
        parts = self.parts
        if not file:
            return {parts.notice: ""}
        try:
            picture = read_image(Path(file), self.jobs.offer(model).preset.frame_size)
            start = self._begin(self.jobs.encode(picture, model), model, picture)
        except CogVideoError as error:  # the field is free for another picture
            return {parts.picture: None, parts.notice: notice_html(error.message(me["language"]), "error")}
        finally:
            Path(file).unlink(missing_ok=True)
        return {parts.begin: start, parts.picture: None} | self._ready(me)

    def _begin(self, first: TokenFrames, model: str, picture: Any = None) -> dict[str, Any]:
        seen = data_uri(self.jobs.decode(first, model)[0])
        return first_frame_value(first, seen, None if picture is None else data_uri(picture))

    def _ready(self, me: dict[str, str]) -> Updates:
        return {self.parts.notice: notice_html(self.say(me["language"], "start_ready"))}

    @_said
    def reuse(self, me: Any, event: gr.EventData) -> Updates:
        """Fills the form with a job's settings, seed included."""
        view = self.jobs.state(str(event.id))
        filled = self._fill(self._form_of(view), me["language"], view.model, _start_of_job(view))
        return {**filled, self.parts.notice: ""}

    @_said
    def restore(self, me: Any, file: str | None) -> Updates:
        """Fills the form with the settings inside a file that was downloaded here."""
        language, parts = me["language"], self.parts
        words, found, start = self.say(language, "file_without"), None, None
        try:
            found = read_settings(Path(file)) if file else None
            request, model = found or (VideoRequest(""), self.own)
            model = model if model in self.jobs.offers else self.own
            start = self._begin(request.first_frame, model) if request.first_frame else None
        except CogVideoError as error:  # the field is free for another file
            words, found = error.message(language), None
        if found is None:
            return {parts.file: None, parts.notice: notice_html(words, "error")}
        form = Form.of(request, self.jobs.offer(model).preset.sampling)
        notice = notice_html(self.say(language, "file_restored"))
        return {**self._fill(form, language, model, start), parts.file: None, parts.notice: notice}

    @_said
    def vary(self, me: Any, event: gr.EventData) -> Updates:
        """Fills the form with the settings of a clip of the gallery, with a seed of its own."""
        clip = self.gallery[int(event.index)]
        wish = {name: clip[name] for name in ("prompt", "frames", "seconds")}
        form = replace(self._usual(self.own), **wish, seed=new_seed())
        return {**self._fill(form, me["language"], self.own), self.parts.fresh: True, self.parts.notice: ""}

    # While somebody types and chooses.

    def choose(self, event: gr.EventData) -> str:
        return str(event.text)

    def append(self, prompt: str, event: gr.EventData) -> str:
        return f"{prompt}{event.text}"

    def read(self, me: Any, prompt: str, superres: bool, model: str) -> str:
        """What the model reads of the prompt, or why it cannot; while there is none, what helps to write one."""
        language = known(me)["language"]
        if not prompt.strip():
            return strings.unwritten_html(self.parts.words, language)
        try:
            reading = self.jobs.tokenize_prompt(VideoRequest(prompt, superres=superres), model)
        except CogVideoError as error:
            return strings.unread_html(error.message(language))
        return strings.reading_html(self.parts.words, language, reading.pieces, reading.limit)

    def update_estimate(
        self, me: Any, frames: int | None, seconds: float, superres: bool, model: str, memory: str
    ) -> Updates:
        """What comes of the chosen frame rate, length and memory preset."""
        if frames is None:  # the browser is still exchanging one choice for another, and asks again
            return {self.parts.outcome: gr.skip()}
        form = Form(num_frames=frames, duration=seconds, superres=superres)
        return self._rates(form, known(me)["language"], model, memory)

    def switch(self, me: Any, model: str, frames: int, seconds: float) -> Updates:
        """Another model: its own usual settings; a first frame of the other one means nothing to it."""
        parts, language = self.parts, known(me)["language"]
        form = replace(self._usual(model), num_frames=frames, duration=seconds)
        about = parts.about_model(self._chosen(language, model))
        rates = self._rates(form, language, model)
        return {**parts.defaults(self.jobs.offer(model).preset), **rates, parts.begin: None, **about}

    # Pieces.

    def _screen(self, job: str, key: str) -> dict[str, Any]:
        """A job as it is now; while it is active the screen then watches it (`/watch`) by itself."""
        view = self.jobs.state(job)
        value = job_json.screen_value(view, self.jobs.preset_of(view), self.own)
        return {**value, "mine": self.jobs.is_owner(job, key)}

    def _form_of(self, view: JobState) -> Form:
        return Form.of(view.request, self.jobs.preset_of(view).sampling)

    def _usual(self, model: str) -> Form:
        return Form.default(self.jobs.offer(model).preset)

    def _chosen(self, language: str, model: str) -> FormContext:
        offer = self.jobs.offer(model)
        held = self.jobs.memory_summary(model) if large(offer.preset.model) else None
        return FormContext(language, offer, Held(offer.preset.model, *held) if held else None)

    def _fill(self, form: Form, language: str, model: str, start: dict[str, Any] | None = None) -> Updates:
        filled = self.parts.fill(form, self._chosen(language, model), start)
        return merged(filled, self._rates(form, language, model))

    def _rates(self, form: Form, language: str, model: str, memory: str = "") -> Updates:
        request = VideoRequest("", 0, form.num_frames, form.duration, form.superres)
        estimate = self.jobs.estimate(request, model, memory or None)
        return self.parts.rates(form, language, estimate, self.jobs.queue_length())

    def _from_link(self, query: dict[str, str], model: str, language: str) -> tuple[Form | None, str, str]:
        """The form a link describes, and a sentence about it with its kind."""
        preset = self.jobs.offer(model).preset
        try:
            form = Form.from_query(query, Form.default(preset))
            if form and form.seed is not None:
                form.request(preset.sampling)
        except RequestError as error:
            return None, self.say(language, "bad_settings", reason=error.message(language)), "error"
        return form, self.say(language, "shared_settings") if form else "", ""


def known(me: Any, accepted: str | None = None) -> dict[str, str]:
    """What the browser remembers, made good where it remembers nothing sensible."""
    me = me if isinstance(me, dict) else {}
    key, language = me.get("key"), me.get("language")
    return {
        "key": key if isinstance(key, str) and len(key) >= 16 else new_key(),
        "language": language if language in strings.LANGUAGES else strings.preferred_language(accepted),
    }


def _start_of_job(view: JobState) -> dict[str, Any] | None:
    """A job's given first frame, with its own first picture as what the model saw."""
    if view.request.first_frame is None:
        return None
    picture = view.keyframes[0] if view.keyframes else view.poster
    return first_frame_value(view.request.first_frame, f"media/{view.id}/{picture}" if picture else "")
