"""Handlers of the screen, which shows one job, and of the shelf with history and gallery below it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from cogvideo.jobs.follow_ups import FollowUp, stored_tokens, submit_follow_up
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.state import JobState
from cogvideo.token_frames import last_frame
from cogvideo.web.form import Form
from cogvideo.web.form_fields import EstimateFields
from cogvideo.web.handler_context import HandlerContext, show_errors
from cogvideo.web.session import Session
from cogvideo.web.strings import notice_html
from cogvideo.web.updates import Updates, merged


class ScreenHandlers:
    """Handlers of the jobs that the page shows."""

    def __init__(self, context: HandlerContext) -> None:
        self.context = context

    def submitted(self, state: JobState, session: Session) -> Updates:
        """Show a new job on the screen, with the notes about its prompt."""
        context, components, language = self.context, self.context.components, session.language
        notes = "".join(zh if language == "zh" else f"{en} " for zh, en in state.notes)
        return {
            components.session: session.to_browser(),
            components.screen: {**context.screen(state.id, session.key), "asked": True},
            components.notice: notice_html(notes),
            components.seed: state.request.seed,
            components.shelf: context.history(session),
        }

    @show_errors
    def follow_up(self, session: Session, event: gr.EventData) -> Updates:
        """Queue follow-ups of the job on the screen, and show the first of them."""
        drafts = [int(draft) for draft in event.drafts]
        action = FollowUp.parse(str(event.change))
        state, *_ = submit_follow_up(self.context.jobs, str(event.id), action, session.key, drafts)
        filled = self.context.fill_from_job(state, session.language)
        return merged(filled, self.submitted(state, session))

    @show_errors
    def use_last_frame(self, session: Session, event: gr.EventData) -> Updates:
        """Fill the form so that the next video starts with the last frame of the one on the screen."""
        context = self.context
        state = context.jobs.state(str(event.id))
        tokens = last_frame(stored_tokens(context.jobs, state.id))
        form = replace(context.form_of(state), seed=None, interpolation_seed=None)
        first_frame = context.first_frame(tokens, state.model)
        filled = context.fill(form, session.language, state.model, first_frame)
        return filled | context.notice(session.language, "start_ready")

    @show_errors
    def reuse_settings(self, session: Session, event: gr.EventData) -> Updates:
        """Fill the form with a job's settings, seed included."""
        filled = self.context.fill_from_job(self.context.jobs.state(str(event.id)), session.language)
        return {**filled, self.context.components.notice: ""}

    @show_errors
    def show(self, session: Session, event: gr.EventData) -> Updates:
        """Show a job of the history on the screen."""
        components = self.context.components
        return {components.screen: self.context.screen(str(event.id), session.key), components.notice: ""}

    @show_errors
    def stop(self, session: Session, event: gr.EventData) -> Updates:
        """Stop a job now or after the current round."""
        self.context.jobs.stop(str(event.id), session.key, after_round=bool(event.level))
        return {self.context.components.notice: ""}

    @show_errors
    def delete(self, session: Session, event: gr.EventData) -> Updates:
        """Delete a job. If the screen shows it, its watcher clears the screen (screen_watch.js)."""
        self.context.jobs.delete(str(event.id), session.key)
        return {self.context.components.shelf: self.context.history(session), self.context.components.notice: ""}

    def refresh(self, session: Any, *values: Any) -> Updates:
        """Show history and queue length after a job has ended. `values`: those of `EstimateFields`."""
        fields: EstimateFields[Any] = EstimateFields(*values)
        context, components, current = self.context, self.context.components, Session.from_browser(session)
        form = Form(num_frames=fields.num_frames, duration=fields.duration, superres=fields.superres)
        estimate = context.estimate(form, current.language, fields.model, fields.memory)
        history: list[JsonObject] = context.history(current)
        return {components.shelf: history, components.outcome: estimate[components.outcome]}
