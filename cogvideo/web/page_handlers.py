"""Handlers of loading the page and of changing its language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from cogvideo.errors import RequestError
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.state import JobState
from cogvideo.request import new_seed
from cogvideo.web.form import Form
from cogvideo.web.form_fields import EstimateFields
from cogvideo.web.form_handlers import FormHandlers, form_to_estimate
from cogvideo.web.handler_context import HandlerContext, first_frame_of
from cogvideo.web.session import Session
from cogvideo.web.strings import notice_html
from cogvideo.web.updates import Updates, merged


@dataclass
class _Opened:
    """What a link opens: a job, a form, or neither; and a notice with its kind."""

    model: str
    form: Form | None = None
    state: JobState | None = None
    notice: str = ""
    notice_kind: str = ""
    first_frame: JsonObject | None = None


class PageHandlers:
    """Handlers of the page as a whole."""

    def __init__(self, context: HandlerContext, form: FormHandlers) -> None:
        self.context, self._form = context, form

    def on_load(self, session: Any, request: gr.Request) -> Updates:
        """Show the job or the settings of the link, the visitor's history, and an active job of theirs."""
        query = dict(request.query_params)
        accept_language = query.get("lang") or request.headers.get("accept-language")
        current = Session.from_browser(session, accept_language)
        opened = self._open_link(query, current.language)
        if opened.state is None and opened.form is None:
            history = self.context.jobs.history(current.key, 5)
            opened.state = next((state for state in history if state.active), None)
        notice = notice_html(opened.notice, opened.notice_kind)
        return self._load_updates(current, opened) | {self.context.components.notice: notice}

    def change_language(self, session: Any, language: str, prompt: str, *values: Any) -> Updates:
        """Show the page in another language. `values`: those of `EstimateFields`."""
        fields: EstimateFields[Any] = EstimateFields(*values)
        current = Session.from_browser(session).with_language(language)
        context, components = self.context, self.context.components
        updates = context.updates.translate_labels(context.form_context(language, fields.model))
        updates = merged(updates, {components.memory: gr.update(value=fields.memory)})
        updates = merged(updates, context.estimate(form_to_estimate(fields), language, fields.model, fields.memory))
        browser = current.to_browser()
        return {
            **updates,
            components.session: browser,
            components.tokenized_prompt: self._form.tokenize(browser, prompt, fields.superres, fields.model),
        }

    def _open_link(self, query: Mapping[str, str], language: str) -> _Opened:
        context = self.context
        requested = query.get("m", "")
        opened = _Opened(requested if requested in context.jobs.models.entries else context.default_model)
        self._read_settings(opened, query, language)
        if "job" not in query:
            return opened
        try:
            opened.state = context.jobs.state(query["job"])
        except RequestError as error:
            if opened.form is None:
                opened.notice, opened.notice_kind = error.message(language), "error"
                return opened
            opened.notice, opened.notice_kind = context.text(language, "shared_gone"), ""
            if "ff" in query:
                opened.notice += context.text(language, "shared_without_start")
            return opened
        opened.model, opened.first_frame = opened.state.model, first_frame_of(opened.state)
        opened.form, opened.notice = opened.form or context.form_of(opened.state), ""
        return opened

    def _read_settings(self, opened: _Opened, query: Mapping[str, str], language: str) -> None:
        """Read the form of a link and check it."""
        context = self.context
        preset = context.jobs.models.entry(opened.model).preset
        try:
            form = Form.from_query(query, Form.default(preset))
            if form and form.seed is not None:
                form.request(preset.sampling)
        except RequestError as error:
            opened.notice = context.text(language, "bad_settings", reason=error.message(language))
            opened.notice_kind = "error"
            return
        opened.form = form
        opened.notice = context.text(language, "shared_settings") if form else ""

    def _load_updates(self, session: Session, opened: _Opened) -> Updates:
        context, components, language = self.context, self.context.components, session.language
        default = context.default_form(opened.model)
        updates = merged(
            context.updates.translate_labels(context.form_context(language, opened.model)),
            context.estimate(default, language, opened.model),
        )
        updates = merged(updates, {components.seed: gr.update(value=new_seed())})
        if opened.form:
            updates = merged(updates, context.fill(opened.form, language, opened.model, opened.first_frame))
        screen = context.screen(opened.state.id, session.key) if opened.state else {}
        if screen.get("mine"):
            updates = merged(updates, {components.random_seed: gr.update(value=True)})
        browser = session.to_browser()
        prompt, superres = opened.form.prompt if opened.form else "", (opened.form or default).superres
        return updates | {
            components.session: browser,
            components.language: language,
            components.tokenized_prompt: self._form.tokenize(browser, prompt, superres, opened.model),
            components.screen: {**screen, "language": language},
            components.shelf: context.history(session),
        }
