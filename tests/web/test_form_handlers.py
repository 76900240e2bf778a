"""Handlers of the form, called as Gradio calls them; no browser."""

from __future__ import annotations

from html import escape
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from cogvideo.jobs.service import JobService, new_key
from cogvideo.web.components import Components
from cogvideo.web.handler_context import HandlerContext
from cogvideo.web.handlers import Handlers
from cogvideo.web.strings import Strings

STRINGS = Strings.load()


@pytest.fixture
def handlers(jobs: JobService) -> Handlers:
    with gr.Blocks():
        components = Components(STRINGS, list(jobs.models.entries.values()), [], "secret")
    return Handlers(HandlerContext(jobs, components, STRINGS, []))


def request(accept_language: str) -> Any:
    return SimpleNamespace(headers={"accept-language": accept_language})


@pytest.mark.parametrize(("accept_language", "language"), [("en-GB,en;q=0.9", "en"), ("zh-CN", "zh")])
def test_hint_before_the_page_has_loaded_is_in_the_browsers_language(
    handlers: Handlers, jobs: JobService, accept_language: str, language: str
) -> None:
    html = handlers.form.tokenize(None, "", True, jobs.preset.name, request(accept_language))
    assert escape(STRINGS.text(language, "prompt_empty")) in html


def test_language_of_the_session_precedes_that_of_the_browser(handlers: Handlers, jobs: JobService) -> None:
    session = {"key": new_key(), "language": "zh"}
    html = handlers.form.tokenize(session, "", True, jobs.preset.name, request("en"))
    assert escape(STRINGS.text("zh", "prompt_empty")) in html
