"""Handlers of the form: submitting it, and what it shows while it is edited."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from cogvideo.config import MAX_DRAFTS
from cogvideo.errors import CogVideoError
from cogvideo.request import VideoRequest, new_seed
from cogvideo.web.form import Form, form_from_values
from cogvideo.web.form_fields import EstimateFields, SubmitFields
from cogvideo.web.handler_context import HandlerContext, show_errors
from cogvideo.web.screen_handlers import ScreenHandlers
from cogvideo.web.session import Session
from cogvideo.web.strings import prompt_error_html, prompt_hint_html, tokenized_prompt_html
from cogvideo.web.updates import Updates


class FormHandlers:
    """Handlers of the form's fields and buttons."""

    def __init__(self, context: HandlerContext, screen: ScreenHandlers) -> None:
        self.context, self._screen = context, screen

    @show_errors
    def submit(self, session: Session, *values: Any) -> Updates:
        """Queue the video that the form describes. `values`: those of `SubmitFields`."""
        return self._submit(session, 1, SubmitFields(*values))

    @show_errors
    def submit_drafts(self, session: Session, *values: Any) -> Updates:
        """Queue MAX_DRAFTS drafts of the video that the form describes."""
        return self._submit(session, MAX_DRAFTS, SubmitFields(*values))

    def _submit(self, session: Session, num_drafts: int, fields: SubmitFields[Any]) -> Updates:
        jobs = self.context.jobs
        preset = jobs.models.entry(fields.model).preset
        request = form_from_values(fields, new_seed() if fields.random_seed else None).request(preset.sampling)
        request = replace(request, num_drafts=num_drafts)
        state = jobs.submit(request, session.key, fields.embed_settings, fields.model, fields.memory or None)
        return self._screen.submitted(state, session)

    @show_errors
    def use_gallery_settings(self, session: Session, event: gr.EventData) -> Updates:
        """Fill the form with the settings of a gallery video and a new seed."""
        context = self.context
        sample = context.gallery[int(event.index)]
        form = replace(
            context.default_form(context.default_model),
            prompt=sample["prompt"],
            num_frames=sample["frames"],
            duration=sample["seconds"],
            seed=new_seed(),
        )
        filled = context.fill(form, session.language, context.default_model)
        return {**filled, context.components.random_seed: True, context.components.notice: ""}

    def choose_example(self, event: gr.EventData) -> str:
        return str(event.text)

    def append_phrase(self, prompt: str, event: gr.EventData) -> str:
        return f"{prompt}{event.text}"

    def tokenize(self, session: Any, prompt: str, superres: bool, model: str, request: gr.Request | None = None) -> str:
        """Show the tokens of the prompt, the reason why it has none, or a hint if it is empty.

        `request`: its language applies as long as the browser has no session, before the page's load event.
        """
        accept_language = None if request is None else request.headers.get("accept-language")
        language = Session.from_browser(session, accept_language).language
        if not prompt.strip():
            return prompt_hint_html(self.context.strings, language)
        try:
            tokenized = self.context.jobs.models.tokenize_prompt(VideoRequest(prompt, superres=superres), model)
        except CogVideoError as error:
            return prompt_error_html(error.message(language))
        return tokenized_prompt_html(self.context.strings, language, tokenized.pieces, tokenized.limit)

    def update_estimate(self, session: Any, *values: Any) -> Updates:
        """Show the result of the chosen frame rate, length and memory preset. `values`: those of `EstimateFields`."""
        fields: EstimateFields[Any] = EstimateFields(*values)
        if fields.num_frames is None:  # the browser is replacing one choice by another and asks again
            return {self.context.components.outcome: gr.skip()}
        language = Session.from_browser(session).language
        return self.context.estimate(form_to_estimate(fields), language, fields.model, fields.memory)

    def switch_model(self, session: Any, model: str, num_frames: int, duration: float) -> Updates:
        """Show another model's own settings. Removes the first frame, whose tokens belong to the previous model."""
        context, language = self.context, Session.from_browser(session).language
        form = replace(context.default_form(model), num_frames=num_frames, duration=duration)
        return {
            **context.updates.defaults(context.jobs.models.entry(model).preset),
            **context.estimate(form, language, model),
            context.components.first_frame: None,
            **context.updates.model_details(context.form_context(language, model)),
        }


def form_to_estimate(fields: EstimateFields[Any]) -> Form:
    return Form(num_frames=fields.num_frames, duration=fields.duration, superres=fields.superres)
