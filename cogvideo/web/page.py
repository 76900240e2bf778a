"""The page: components, the events that connect them to handlers, and the API endpoints."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from cogvideo.errors import CogVideoError
from cogvideo.jobs.log_entries import JsonObject
from cogvideo.jobs.service import JobService
from cogvideo.web.api import endpoints
from cogvideo.web.components import Components
from cogvideo.web.handler_context import HandlerContext
from cogvideo.web.handlers import Handlers
from cogvideo.web.routes import load_gallery
from cogvideo.web.strings import Strings
from cogvideo.web.updates import PageUpdates

EVENT_OPTIONS: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
SET_LANGUAGE = (
    "(session, language, ...rest) => { window.cv.setLanguage(language); return [session, language, ...rest]; }"
)


def build_ui(jobs: JobService) -> gr.Blocks:
    """Build the page for `jobs` without serving it."""
    strings, gallery = Strings.load(), load_gallery()
    with gr.Blocks(
        title=strings.text("zh", "title"), analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
    ) as ui:
        components = Components(strings, list(jobs.models.entries.values()), gallery, jobs.secret("browser"))
        context = HandlerContext(jobs, components, strings, gallery)
        handlers = Handlers(context)
        _connect_prompt(components, handlers, context.updates)
        _connect_screen(components, handlers, context.updates)
        _connect_form(components, handlers, context.updates)
        _connect_page(ui, components, handlers, context.updates)
        _publish(jobs)
    return ui


def _connect_prompt(c: Components, handlers: Handlers, updates: PageUpdates) -> None:
    """Connect the prompt and the buttons that submit a job."""
    inputs = [c.session, *c.submission.in_order()]
    outputs = [c.session, c.screen, c.notice, c.seed, c.shelf]
    c.submit_button.click(handlers.form.submit, inputs, outputs, **EVENT_OPTIONS)
    c.drafts_button.click(handlers.form.submit_drafts, inputs, outputs, **EVENT_OPTIONS)
    c.prompt.submit(handlers.form.submit, inputs, outputs, **EVENT_OPTIONS)
    c.screen.again(handlers.screen.follow_up, [c.session], [*outputs, *updates.form_outputs], **EVENT_OPTIONS)
    c.examples.choose(handlers.form.choose_example, None, [c.prompt], **EVENT_OPTIONS)
    c.phrases.choose(handlers.form.append_phrase, [c.prompt], [c.prompt], **EVENT_OPTIONS)
    prompt_inputs = [c.session, c.prompt, c.superres, c.model]
    c.prompt.change(
        handlers.form.tokenize, prompt_inputs, [c.tokenized_prompt], trigger_mode="always_last", **EVENT_OPTIONS
    )


def _connect_screen(c: Components, handlers: Handlers, updates: PageUpdates) -> None:
    """Connect the screen and the shelf."""
    refresh: dict[str, Any] = {
        "fn": handlers.screen.refresh,
        "inputs": [c.session, *c.estimate.in_order()],
        "outputs": [c.shelf, c.outcome],
        **EVENT_OPTIONS,
    }
    c.screen.settled(**refresh)
    c.shelf.refresh(**refresh)
    # A second press sends the request again: the first may be lost, and Gradio would wait for its answer.
    c.screen.stop(handlers.screen.stop, [c.session], [c.notice], trigger_mode="multiple", **EVENT_OPTIONS)
    c.shelf.open(handlers.screen.show, [c.session], [c.screen, c.notice], **EVENT_OPTIONS)
    c.shelf.remove(handlers.screen.delete, [c.session], [c.shelf, c.notice], **EVENT_OPTIONS)
    for event, handler in (
        (c.screen.go_on, handlers.screen.use_last_frame),
        (c.screen.reuse, handlers.screen.reuse_settings),
        (c.shelf.reuse, handlers.screen.reuse_settings),
        (c.shelf.vary, handlers.form.use_gallery_settings),
        (c.screen.vary, handlers.form.use_gallery_settings),
    ):
        event(handler, [c.session], updates.form_outputs, **EVENT_OPTIONS)


def _connect_form(c: Components, handlers: Handlers, updates: PageUpdates) -> None:
    """Connect the other fields of the form."""
    changes = [c.duration.change, c.num_frames.change, c.superres.change, c.memory.input]
    estimate: dict[str, Any] = {
        "fn": handlers.form.update_estimate,
        "inputs": [c.session, *c.estimate.in_order()],
        "outputs": [c.num_frames, c.outcome],
        "trigger_mode": "always_last",
        **EVENT_OPTIONS,
    }
    # Simultaneous changes send simultaneous requests, answered in any order; the second request gets the final state.
    gr.on(changes, **estimate).then(**estimate)
    model_outputs = [c.first_frame, c.model_note, c.memory, c.num_frames, c.outcome]
    c.model.input(
        handlers.form.switch_model,
        [c.session, c.model, c.num_frames, c.duration],
        [*updates.default_outputs, *model_outputs],
        trigger_mode="always_last",
        **EVENT_OPTIONS,
    )
    c.settings_file.upload(
        handlers.uploads.restore_settings,
        [c.session, c.settings_file],
        [*updates.form_outputs, c.settings_file],
        **EVENT_OPTIONS,
    )
    c.image.upload(
        handlers.uploads.upload_image,
        [c.session, c.image, c.model],
        [c.first_frame, c.image, c.notice],
        **EVENT_OPTIONS,
    )


def _connect_page(ui: gr.Blocks, c: Components, handlers: Handlers, updates: PageUpdates) -> None:
    """Connect loading the page and changing its language."""
    labels = [c.session, *updates.label_outputs, c.outcome, c.tokenized_prompt]
    everything = [*labels, c.language, *updates.form_outputs, c.screen, c.shelf]
    ui.load(handlers.page.on_load, [c.session], list(dict.fromkeys(everything)), **EVENT_OPTIONS)
    c.language.input(
        handlers.page.change_language,
        [c.session, c.language, c.prompt, *c.estimate.in_order()],
        labels,
        js=SET_LANGUAGE,
        trigger_mode="always_last",  # Gradio's default drops a choice made before the previous one is answered
        **EVENT_OPTIONS,
    )


def _publish(jobs: JobService) -> None:
    """Register the API endpoints for gradio_client, curl and MCP."""
    for endpoint in endpoints(jobs):
        gr.api(  # type: ignore[attr-defined]
            with_gradio_errors(endpoint), api_name=endpoint.__name__, concurrency_id="programs", concurrency_limit=2
        )


def with_gradio_errors(endpoint: Callable[..., JsonObject]) -> Callable[..., JsonObject]:
    """Convert the errors of an endpoint to Gradio errors with the message in both languages."""

    @functools.wraps(endpoint)
    def wrapper(*values: Any, **named: Any) -> JsonObject:
        try:
            return endpoint(*values, **named)
        except CogVideoError as error:
            raise gr.Error(html.escape(f"{error.en} / {error.zh}"), print_exception=False) from error

    return wrapper
