"""The page: its Gradio blocks, and the handler of every event."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from cogvideo.errors import CogVideoError
from cogvideo.jobs.service import JobService
from cogvideo.web.api import endpoints
from cogvideo.web.components import Components
from cogvideo.web.handlers import Handlers
from cogvideo.web.routes import load_gallery
from cogvideo.web.strings import Strings

EVENT_OPTIONS: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
SPEAK = "(me, language, ...rest) => { window.cv.setLanguage(language); return [me, language, ...rest]; }"


def build_ui(jobs: JobService) -> gr.Blocks:
    """The page for `jobs`. Nothing is served yet."""
    words, gallery = Strings.load(), load_gallery()
    with gr.Blocks(
        title=words.text("zh", "title"), analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
    ) as ui:
        parts = Components(words, list(jobs.offers.values()), gallery, jobs.secret("browser"))
        actions = Handlers(jobs, parts, gallery)
        _connect_wish(parts, actions)
        _connect_screen(parts, actions)
        _connect_form(parts, actions)
        _connect_page(ui, parts, actions)
        _publish(jobs)
    return ui


def _connect_wish(parts: Components, actions: Handlers) -> None:
    """The sentence and the buttons that ask for a video."""
    wish = [parts.session, *parts.form, parts.model, parts.memory, parts.fresh, parts.comment]
    asked = [parts.session, parts.screen, parts.notice, parts.seed, parts.shelf]
    parts.make.click(actions.submit, wish, asked, **EVENT_OPTIONS)
    parts.drafts.click(actions.draft, wish, asked, **EVENT_OPTIONS)
    parts.prompt.submit(actions.submit, wish, asked, **EVENT_OPTIONS)
    parts.screen.again(actions.again, [parts.session], [*asked, *parts.filled], **EVENT_OPTIONS)
    parts.chips.choose(actions.choose, None, [parts.prompt], **EVENT_OPTIONS)
    parts.phrases.choose(actions.append, [parts.prompt], [parts.prompt], **EVENT_OPTIONS)
    read = [parts.session, parts.prompt, parts.superres, parts.model]
    parts.prompt.change(actions.read, read, [parts.reading], trigger_mode="always_last", **EVENT_OPTIONS)


def _connect_screen(parts: Components, actions: Handlers) -> None:
    """The job on the stage, and the shelves below it."""
    look_again: dict[str, Any] = {
        "fn": actions.refresh,
        "inputs": [parts.session, *_reckoned(parts)],
        "outputs": [parts.shelf, parts.outcome],
        **EVENT_OPTIONS,
    }
    parts.screen.settled(**look_again)
    parts.shelf.refresh(**look_again)
    # Pressed again, it is sent again: the first request may be lost, and Gradio would wait for its answer.
    parts.screen.stop(actions.stop, [parts.session], [parts.notice], trigger_mode="multiple", **EVENT_OPTIONS)
    parts.shelf.open(actions.show, [parts.session], [parts.screen, parts.notice], **EVENT_OPTIONS)
    parts.shelf.remove(actions.remove, [parts.session], [parts.shelf, parts.notice], **EVENT_OPTIONS)
    for event, handler in (
        (parts.screen.go_on, actions.continue_video),
        (parts.screen.reuse, actions.reuse),
        (parts.shelf.reuse, actions.reuse),
        (parts.shelf.vary, actions.vary),
        (parts.screen.vary, actions.vary),
    ):
        event(handler, [parts.session], parts.filled, **EVENT_OPTIONS)


def _connect_form(parts: Components, actions: Handlers) -> None:
    """Everything else that can be chosen or dropped."""
    reckoned = _reckoned(parts)
    changes = [parts.seconds.change, parts.frames.change, parts.superres.change, parts.memory.input]
    reckon: dict[str, Any] = {
        "fn": actions.update_estimate,
        "inputs": [parts.session, *reckoned],
        "outputs": [parts.frames, parts.outcome],
        "trigger_mode": "always_last",
        **EVENT_OPTIONS,
    }
    # What changes at once is asked about at once, and the answers come in any order: after each, how it is now.
    gr.on(changes, **reckon).then(**reckon)
    usual = [parts.guidance, parts.temperature, parts.top_k, parts.superres]
    about = [parts.begin, parts.about, parts.memory, parts.frames, parts.outcome]
    switch = [parts.session, parts.model, parts.frames, parts.seconds]
    parts.model.input(actions.switch, switch, [*usual, *about], trigger_mode="always_last", **EVENT_OPTIONS)
    parts.file.upload(actions.restore, [parts.session, parts.file], [*parts.filled, parts.file], **EVENT_OPTIONS)
    look = [parts.session, parts.picture, parts.model]
    parts.picture.upload(actions.look, look, [parts.begin, parts.picture, parts.notice], **EVENT_OPTIONS)


def _connect_page(ui: gr.Blocks, parts: Components, actions: Handlers) -> None:
    """Coming, reloading, another language."""
    clothes = [parts.session, *parts.translated, parts.outcome, parts.reading]
    everything = [*clothes, parts.language, *parts.filled, parts.screen, parts.shelf]
    ui.load(actions.on_load, [parts.session], list(dict.fromkeys(everything)), **EVENT_OPTIONS)
    speak = [parts.session, parts.language, parts.prompt, *_reckoned(parts)]
    # By default Gradio drops a choice that is made while the answer to the one before is under way.
    parts.language.input(actions.change_language, speak, clothes, js=SPEAK, trigger_mode="always_last", **EVENT_OPTIONS)


def _reckoned(parts: Components) -> list[Any]:
    """What the length of a run depends on."""
    return [parts.frames, parts.seconds, parts.superres, parts.model, parts.memory]


def _publish(jobs: JobService) -> None:
    """The same jobs for programs: named endpoints for gradio_client, curl and MCP."""
    for endpoint in endpoints(jobs):
        gr.api(  # type: ignore[attr-defined]
            _for_programs(endpoint), api_name=endpoint.__name__, concurrency_id="programs", concurrency_limit=2
        )


def _for_programs(endpoint: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """An endpoint whose errors reach the program as a sentence in both languages."""

    @functools.wraps(endpoint)
    def answer(*values: Any, **named: Any) -> dict[str, Any]:
        try:
            return endpoint(*values, **named)
        except CogVideoError as error:
            raise gr.Error(html.escape(f"{error.en} / {error.zh}"), print_exception=False) from error

    return answer
