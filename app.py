"""The page: type a Chinese sentence, watch five keyframes appear and then the frames between them, share a link.

`python app.py` serves it; a Hugging Face Space does just that. All model work happens in the worker of
`cogvideo.jobs`; a handler here only submits jobs and shows their newest view.
"""

from __future__ import annotations

import functools
import html
import json
import logging
import os
import signal
import sys
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import quote

import gradio as gr
from gradio.route_utils import FnIndexInferError

from cogvideo import page
from cogvideo.config import MAX_DRAFTS, MAX_GUIDANCE, VideoRequest, demand
from cogvideo.errors import CogVideoError, RequestError
from cogvideo.jobs import Jobs, Limits, open_jobs, read_settings
from cogvideo.keys import new_key, new_seed
from cogvideo.page import FOLDER, Form, Words
from cogvideo.page_api import endpoints
from cogvideo.page_change import go_on, kept_tokens
from cogvideo.page_models import model_choices, model_note
from cogvideo.page_malformed import TRIPS, malformed
from cogvideo.page_routes import load_gallery, routes
from cogvideo.page_start import data_uri, last_frame, read_picture, start_of, start_value
from cogvideo.serving import data_folder, duplicate_link, free_port, parser, share_base
from cogvideo.tokens import TokenFrames
from cogvideo.view import View

LOG = logging.getLogger(__name__)

SESSIONS = 100
"""Visitors whose components Gradio remembers. The page keeps nothing there; each costs 150 KB and is made in 20 ms."""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
Updates = dict[Any, Any]
"""Gradio components and what they change to."""


def _said(handler: Callable[..., Updates]) -> Callable[..., Updates]:
    """A handler whose errors become a sentence on the page; nothing else changes then."""

    @functools.wraps(handler)
    def answer(self: Page, me: Any, *rest: Any) -> Updates:
        me = self.known(me)
        try:
            return handler(self, me, *rest)
        except CogVideoError as error:
            words = error.message(me["language"])
        except Exception:
            LOG.exception("The page could not answer")
            words = self.say(me["language"], "unexpected")
        return {self.notice: self.notice_of(words, "error")}

    return answer


def _for_programs(endpoint: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """An endpoint whose errors reach the program as a sentence in both languages; values of other types are errors."""
    kinds = {name: kind for name, kind in get_type_hints(endpoint).items() if name != "return"}

    @functools.wraps(endpoint)
    def answer(*values: Any, **named: Any) -> dict[str, Any]:
        try:
            for name, value in (dict(zip(kinds, values)) | named).items():
                demand(name, value, kinds[name])
            return endpoint(*values, **named)
        except CogVideoError as error:
            raise gr.Error(html.escape(f"{error.en} / {error.zh}"), print_exception=False) from error

    return answer


class Page:
    """The components of the page and what happens on them. One instance serves all visitors."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.words = Words.load()
        self.own = jobs.preset.name
        self.usual = Form.usual(jobs.preset)
        self.examples: list[list[str]] = json.loads((FOLDER / "examples.json").read_text("utf-8"))
        self.gallery = load_gallery()
        with gr.Blocks(
            title=self.say("zh", "title"), analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
        ) as self.ui:
            self._build()
            self._connect()
            self._publish()

    def say(self, language: str, key: str, **values: object) -> str:
        return self.words.say(language, key, **values)

    # What stands on the page.

    def _build(self) -> None:
        self.me = gr.BrowserState(None, storage_key="cogvideo", secret=self.jobs.secret("browser"))
        with gr.Row(elem_id="cv-top"):
            self.brand = gr.HTML(self._brand("zh"), apply_default_css=False)
            self.language = gr.Radio(
                [("中文", "zh"), ("English", "en")],
                value="zh",
                label=self.say("zh", "language"),
                show_label=False,
                container=False,
                elem_id="cv-language",
            )
        with gr.Row(elem_id="cv-main"):
            with gr.Column(scale=5, min_width=320, elem_id="cv-form"):
                self._build_form()
            with gr.Column(scale=7, min_width=320, elem_id="cv-stagecolumn"):
                self.screen = gr.HTML(
                    None,
                    html_template=_asset("screen.html"),
                    js_on_load=_asset("screen.js"),
                    apply_default_css=False,
                    elem_id="cv-screen",
                    words=self.words.pairs,
                    share_base=share_base(),
                )
        self.shelf = gr.HTML(
            [],
            html_template=_asset("shelf.html"),
            js_on_load=_asset("shelf.js"),
            apply_default_css=False,
            elem_id="cv-shelf",
            gallery=self.gallery,
        )
        self.foot = gr.Markdown(self._foot("zh"), elem_id="cv-foot")

    def _build_form(self) -> None:
        zh = {key: self.say("zh", key) for key in self.words.pairs if "{" not in self.words.pairs[key][0]}
        usual = self.usual
        with gr.Column(elem_id="cv-wish"):
            self.prompt = gr.Textbox(
                label=zh["prompt"], placeholder=zh["prompt_hint"], lines=2, max_lines=5, elem_id="cv-prompt"
            )
            self.chips = gr.HTML(
                [[None, self.examples]],
                html_template="<div></div>",
                js_on_load=_asset("chips.js"),
                apply_default_css=False,
                elem_id="cv-chips",
            )
            self.reading = gr.HTML("", apply_default_css=False, elem_id="cv-reading")
            self.begin = gr.HTML(
                None,
                html_template="<div></div>",
                js_on_load=_asset("start.js"),
                apply_default_css=False,
                elem_id="cv-begin",
            )
            with gr.Row(elem_id="cv-makerow"):
                self.make = gr.Button(zh["make"], variant="primary", elem_id="cv-make", scale=3, min_width=160)
                self.drafts = gr.Button(zh["drafts"], elem_id="cv-drafts", scale=2, min_width=130)
            self.notice = gr.HTML("", apply_default_css=False, elem_id="cv-notice")
        with gr.Column(elem_id="cv-options"):
            self.seconds = gr.Radio(
                page.seconds_choices(self.words, "zh"), value=usual.seconds, label=zh["seconds"], elem_id="cv-seconds"
            )
            self.frames = gr.Radio(
                page.rate_choices(self.words, "zh", usual.seconds),
                value=usual.frames,
                label=zh["rate"],
                elem_id="cv-rate",
            )
            self.outcome = gr.HTML(self._outcome("zh", usual, self.own), apply_default_css=False, elem_id="cv-outcome")
            with gr.Group():
                self.seed = gr.Number(label=zh["seed"], info=zh["seed_hint"], precision=0, elem_id="cv-seed")
                self.fresh = gr.Checkbox(value=True, label=zh["fresh"], elem_id="cv-fresh")
            with gr.Accordion(zh["start"], open=False, elem_id="cv-start") as self.starting:
                self.picture = gr.File(
                    label=zh["start"], file_types=["image"], height=110, show_label=False, elem_id="cv-picture"
                )
            with gr.Accordion(zh["phrases"], open=False, elem_id="cv-phrases") as self.bank:
                self.phrases = gr.HTML(
                    json.loads(_asset("phrases.json")),
                    html_template="<div></div>",
                    js_on_load=_asset("chips.js"),
                    apply_default_css=False,
                )
            with gr.Accordion(zh["settings"], open=False, elem_id="cv-settings") as self.settings:
                self.model = gr.Radio(
                    model_choices(self.words, "zh", self.jobs.offers.values()),
                    value=self.own,
                    label=zh["model"],
                    visible=len(self.jobs.offers) > 1,
                    elem_id="cv-model",
                )
                self.about = gr.HTML(self._about("zh", self.own), apply_default_css=False, elem_id="cv-about")
                self.guidance = gr.Slider(
                    1, MAX_GUIDANCE / 2, usual.guidance, step=0.5, label=zh["guidance"], info=zh["guidance_hint"]
                )
                self.temperature = gr.Slider(
                    0.5, 1.5, usual.temperature, step=0.05, label=zh["temperature"], info=zh["temperature_hint"]
                )
                self.top_k = gr.Slider(1, 40, usual.top_k, step=1, label=zh["top_k"], info=zh["top_k_hint"])
                self.between = gr.Textbox(  # a Number cannot be empty: it shows and sends 0
                    label=zh["between_seed"], info=zh["between_hint"], max_lines=1, elem_id="cv-between"
                )
                self.superres = gr.Checkbox(value=usual.superres, label=zh["superres"])
                self.comment = gr.Checkbox(value=True, label=zh["comment"])
                self.file = gr.File(label=zh["file"], file_types=[".mp4", ".gif"], height=140, elem_id="cv-file")
        self.form = [
            self.prompt,
            self.seed,
            self.frames,
            self.seconds,
            self.guidance,
            self.temperature,
            self.top_k,
            self.superres,
            self.between,
            self.begin,
        ]

    def _connect(self) -> None:
        wish = [self.me, *self.form, self.model, self.fresh, self.comment]
        asked = [self.me, self.screen, self.notice, self.seed, self.shelf]
        filled = [*self.form, self.model, self.about, self.fresh, self.outcome, self.notice]
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        clothes = list(self._clothes("zh", self.own))
        everything = list(dict.fromkeys([self.me, self.language, *clothes, *filled, self.screen, self.shelf]))
        reckoned = [self.frames, self.seconds, self.superres, self.model]

        self.ui.load(self.enter, [self.me], everything, **quiet)
        self.make.click(self.submit, wish, asked, **quiet)
        self.drafts.click(self.draft, wish, asked, **quiet)
        self.prompt.submit(self.submit, wish, asked, **quiet)
        self.screen.again(self.again, [self.me], [*asked, *filled], **quiet)
        self.screen.go_on(self.go_on, [self.me], filled, **quiet)
        self.screen.settled(self.history, [self.me], [self.shelf], **quiet)
        self.shelf.open(self.show, [self.me], [self.screen, self.notice], **quiet)
        self.screen.stop(self.stop, [self.me], [self.notice], **quiet)
        self.screen.reuse(self.reuse, [self.me], filled, **quiet)
        self.shelf.reuse(self.reuse, [self.me], filled, **quiet)
        self.shelf.vary(self.vary, [self.me], filled, **quiet)
        self.shelf.remove(self.remove, [self.me], [self.shelf, self.notice], **quiet)
        self.file.upload(self.restore, [self.me, self.file], [*filled, self.file], **quiet)
        self.picture.upload(
            self.look, [self.me, self.picture, self.model], [self.begin, self.picture, self.notice], **quiet
        )
        self.chips.choose(self.choose, None, [self.prompt], **quiet)
        self.phrases.choose(self.append, [self.prompt], [self.prompt], **quiet)
        self.language.input(
            self.speak,
            [self.me, self.language, *reckoned],
            [self.me, *clothes, self.outcome],
            js="(me, language, ...rest) => { window.cv.setLanguage(language); return [me, language, ...rest]; }",
            **quiet,
        )
        self.prompt.change(
            self.read,
            [self.me, self.prompt, self.superres, self.model],
            [self.reading],
            trigger_mode="always_last",
            **quiet,
        )
        self.model.input(
            self.switch,
            [self.me, self.model, self.frames, self.seconds],
            [*self._usual(self.own), self.begin, self.about, self.frames, self.outcome],
            **quiet,
        )
        for control in (self.seconds, self.frames, self.superres):
            control.change(self.reckon, [self.me, *reckoned], [self.frames, self.outcome], **quiet)

    def _publish(self) -> None:
        """The same jobs for programs: named endpoints for gradio_client, curl and MCP."""
        for endpoint in endpoints(self.jobs):
            gr.api(  # type: ignore[attr-defined]
                _for_programs(endpoint), api_name=endpoint.__name__, concurrency_id="programs", concurrency_limit=2
            )

    # What happens.

    def enter(self, me: Any, request: gr.Request) -> Updates:
        """Somebody opens or reloads the page: their language, the job or the settings of the link, their history."""
        query = dict(request.query_params)
        me = self.known(me, query.get("lang") or request.headers.get("accept-language"))
        language = me["language"]
        model = query["m"] if query.get("m") in self.jobs.offers else self.own
        form, words, kind = self._from_link(query, model, language)
        view, start = None, None
        if "job" in query:
            try:
                view = self.jobs.view(query["job"])
            except RequestError as error:
                words, kind = (self.say(language, "shared_gone"), "") if form else (error.message(language), "error")
                words += self.say(language, "shared_without_start") if form and "ff" in query else ""
            else:
                model, start = view.model, _start_of_job(view)
                form, words = form or self._form_of(view), ""
        view = view or next((own for own in self.jobs.history(me["key"], 5) if own.active and not form), None)
        updates = _merge(self._clothes(language, model), self._rates(self.usual, language, model))
        updates = _merge(updates, {self.seed: gr.update(value=new_seed())})
        if form:
            updates = _merge(updates, self._fill(form, language, model, start))
        value = self._screen(view.id, me["key"]) if view else {}
        if value.get("mine"):
            updates = _merge(updates, {self.fresh: gr.update(value=True)})
        updates |= {
            self.me: me,
            self.language: language,
            self.screen: {**value, "language": language},
            self.shelf: self.history(me),
            self.notice: self.notice_of(words, kind),
        }
        return updates

    @_said
    def submit(self, me: Any, *values: Any) -> Updates:
        """Puts what the form says into the queue, or says why not."""
        return self._submit(me, 1, *values)

    @_said
    def draft(self, me: Any, *values: Any) -> Updates:
        """As `submit`, but four strips of keyframes to choose from."""
        return self._submit(me, MAX_DRAFTS, *values)

    def _submit(self, me: dict[str, str], drafts: int, *values: Any) -> Updates:
        *form, model, fresh, comment = values
        preset = self.jobs.offer(model).preset
        request = _form(form, new_seed() if fresh else None).request(preset.sampling)
        view = self.jobs.submit(replace(request, drafts=drafts), me["key"], comment, model)
        return self._asked(view, me)

    @_said
    def again(self, me: Any, event: gr.EventData) -> Updates:
        """New jobs from the one on the screen, with one thing changed; the first of them is shown."""
        drafts = [int(draft) for draft in event.drafts]
        view, *_ = go_on(self.jobs, str(event.id), str(event.change), me["key"], drafts)
        updates = self._fill(self._form_of(view), me["language"], view.model, _start_of_job(view))
        return _merge(updates, self._asked(view, me))

    @_said
    def go_on(self, me: Any, event: gr.EventData) -> Updates:
        """Fills the form so that the next video begins with the last frame of the one on the screen."""
        view = self.jobs.view(str(event.id))
        first = last_frame(kept_tokens(self.jobs, view.id))
        form = replace(self._form_of(view), seed=None, between=None)
        return self._fill(form, me["language"], view.model, self._begin(first, view.model)) | self._ready(me)

    @_said
    def look(self, me: Any, file: str | None, model: str) -> Updates:
        """Shows what the model sees of an uploaded picture, which then is the first frame."""
        if not file:
            return {self.notice: ""}
        try:
            picture = read_picture(Path(file), self.jobs.offer(model).preset.frame_size)
            start = self._begin(self.jobs.encode(picture, model), model, picture)
        except CogVideoError as error:  # the field is free for another picture
            return {self.picture: None, self.notice: self.notice_of(error.message(me["language"]), "error")}
        finally:
            Path(file).unlink(missing_ok=True)
        return {self.begin: start, self.picture: None} | self._ready(me)

    def _begin(self, first: TokenFrames, model: str, picture: Any = None) -> dict[str, Any]:
        seen = data_uri(self.jobs.decode(first, model)[0])
        return start_value(first, seen, None if picture is None else data_uri(picture))

    def _ready(self, me: dict[str, str]) -> Updates:
        return {self.notice: self.notice_of(self.say(me["language"], "start_ready"), "")}

    @_said
    def show(self, me: Any, event: gr.EventData) -> Updates:
        """Puts a job of the history on the screen."""
        return {self.screen: self._screen(str(event.id), me["key"]), self.notice: ""}

    @_said
    def stop(self, me: Any, event: gr.EventData) -> Updates:
        self.jobs.stop(str(event.id), me["key"], after_level=bool(event.level))
        return {self.notice: ""}

    @_said
    def remove(self, me: Any, event: gr.EventData) -> Updates:
        self.jobs.delete(str(event.id), me["key"])
        return {self.shelf: self.history(me), self.notice: ""}

    @_said
    def reuse(self, me: Any, event: gr.EventData) -> Updates:
        """Fills the form with a job's settings, seed included."""
        view = self.jobs.view(str(event.id))
        return {**self._fill(self._form_of(view), me["language"], view.model, _start_of_job(view)), self.notice: ""}

    @_said
    def restore(self, me: Any, file: str | None) -> Updates:
        """Fills the form with the settings inside a file that was downloaded here."""
        language = me["language"]
        words, found, start = self.say(language, "file_without"), None, None
        try:
            found = read_settings(Path(file)) if file else None
            request, model = found or (VideoRequest(""), self.own)
            model = model if model in self.jobs.offers else self.own
            start = self._begin(request.first_frame, model) if request.first_frame else None
        except CogVideoError as error:  # the field is free for another file
            words, found = error.message(language), None
        if found is None:
            return {self.file: None, self.notice: self.notice_of(words, "error")}
        form = Form.of(request, self.jobs.offer(model).preset.sampling)
        notice = self.notice_of(self.say(language, "file_restored"), "")
        return {**self._fill(form, language, model, start), self.file: None, self.notice: notice}

    @_said
    def vary(self, me: Any, event: gr.EventData) -> Updates:
        """Fills the form with the settings of a clip of the gallery, with a seed of its own."""
        clip = self.gallery[int(event.index)]
        form = replace(
            self.usual, prompt=clip["prompt"], seed=new_seed(), frames=clip["frames"], seconds=clip["seconds"]
        )
        return {**self._fill(form, me["language"], self.own), self.fresh: True, self.notice: ""}

    def choose(self, event: gr.EventData) -> str:
        return str(event.text)

    def read(self, me: Any, prompt: str, superres: bool, model: str) -> str:
        """What the model reads of the prompt; nothing while there is nothing to read."""
        try:
            reading = self.jobs.read(VideoRequest(prompt, superres=superres), model)
        except CogVideoError:
            return ""
        return page.reading_html(self.words, self.known(me)["language"], reading.pieces, reading.limit)

    def append(self, prompt: str, event: gr.EventData) -> str:
        return f"{prompt}{event.text}"

    def speak(self, me: Any, language: str, frames: int, seconds: float, superres: bool, model: str) -> Updates:
        """The page in another language."""
        me = {**self.known(me), "language": language}
        form = Form(frames=frames, seconds=seconds, superres=superres)
        clothes = _merge(self._clothes(language, model), self._rates(form, language, model))
        return {**clothes, self.me: me}

    def reckon(self, me: Any, frames: int, seconds: float, superres: bool, model: str) -> Updates:
        """What comes of the chosen frame rate and length."""
        return self._rates(Form(frames=frames, seconds=seconds, superres=superres), self.known(me)["language"], model)

    def switch(self, me: Any, model: str, frames: int, seconds: float) -> Updates:
        """Another model: its own usual settings; a first frame of the other one means nothing to it."""
        language = self.known(me)["language"]
        form = replace(Form.usual(self.jobs.offer(model).preset), frames=frames, seconds=seconds)
        rates = self._rates(form, language, model)
        return {**self._usual(model), **rates, self.begin: None, self.about: self._about(language, model)}

    def history(self, me: Any) -> list[dict[str, Any]]:
        return [page.card_value(view) for view in self.jobs.history(self.known(me)["key"])]

    # Pieces.

    def _asked(self, view: View, me: dict[str, str]) -> Updates:
        language = me["language"]
        notes = "".join(zh if language == "zh" else f"{en} " for zh, en in view.notes)
        return {
            self.me: me,
            self.screen: {**self._screen(view.id, me["key"]), "asked": True},
            self.notice: self.notice_of(notes, ""),
            self.seed: view.request.seed,
            self.shelf: self.history(me),
        }

    def _screen(self, job: str, key: str) -> dict[str, Any]:
        """A job as it is now; while it is active the screen then watches it (`/watch`) by itself."""
        value = self._value(self.jobs.view(job))
        return {**value, "mine": self.jobs.holds(job, key)}

    def _value(self, view: View) -> dict[str, Any]:
        return page.screen_value(view, self.jobs.preset_of(view), self.own)

    def _form_of(self, view: View) -> Form:
        return Form.of(view.request, self.jobs.preset_of(view).sampling)

    def known(self, me: Any, accepted: str | None = None) -> dict[str, str]:
        """What the browser remembers, made good where it remembers nothing sensible."""
        me = me if isinstance(me, dict) else {}
        key, language = me.get("key"), me.get("language")
        return {
            "key": key if isinstance(key, str) and len(key) >= 16 else new_key(),
            "language": language if language in page.LANGUAGES else page.preferred_language(accepted),
        }

    def _from_link(self, query: dict[str, str], model: str, language: str) -> tuple[Form | None, str, str]:
        """The form a link describes, and a sentence about it with its kind."""
        preset = self.jobs.offer(model).preset
        try:
            form = Form.from_query(query, Form.usual(preset))
            if form and form.seed is not None:
                form.request(preset.sampling)
        except RequestError as error:
            return None, self.say(language, "bad_settings", reason=error.message(language)), "error"
        return form, self.say(language, "shared_settings") if form else "", ""

    def _fill(self, form: Form, language: str, model: str, start: dict[str, Any] | None = None) -> Updates:
        values = [form.prompt, form.seed if form.seed is not None else new_seed(), form.frames, form.seconds]
        values += [form.guidance, form.temperature, form.top_k, form.superres]
        values += ["" if form.between is None else str(form.between), start]
        updates: Updates = {part: gr.update(value=value) for part, value in zip(self.form, values, strict=True)}
        updates |= {self.fresh: gr.update(value=form.seed is None), self.model: gr.update(value=model)}
        updates[self.about] = self._about(language, model)
        return _merge(updates, self._rates(form, language, model))

    def _usual(self, model: str) -> Updates:
        """The settings that each model has its own of."""
        form = Form.usual(self.jobs.offer(model).preset)
        return {
            self.guidance: form.guidance,
            self.temperature: form.temperature,
            self.top_k: form.top_k,
            self.superres: form.superres,
        }

    def _rates(self, form: Form, language: str, model: str) -> Updates:
        return {
            self.frames: gr.update(choices=page.rate_choices(self.words, language, form.seconds), value=form.frames),
            self.outcome: self._outcome(language, form, model),
        }

    def _outcome(self, language: str, form: Form, model: str) -> str:
        estimate = self.jobs.estimate(VideoRequest("", 0, form.frames, form.seconds, form.superres), model)
        said = page.outcome(self.words, language, form.frames, form.seconds, estimate)
        waiting = self.jobs.queue_length()
        if waiting:
            said += ("" if language == "zh" else " ") + self.say(language, "busy", count=waiting)
        return f"<p>{said}</p>"

    def _about(self, language: str, model: str) -> str:
        return model_note(self.words, language, self.jobs.offer(model))

    def _clothes(self, language: str, model: str) -> Updates:
        """Every label of the form in `language`."""

        def label(key: str, info: str | None = None) -> Any:
            said = {"label": self.say(language, key)}
            return {**gr.update(), **said, **({"info": self.say(language, info)} if info else {})}

        return {
            self.brand: self._brand(language),
            self.foot: self._foot(language),
            self.language: label("language"),
            self.prompt: gr.update(label=self.say(language, "prompt"), placeholder=self.say(language, "prompt_hint")),
            self.make: self.say(language, "make"),
            self.drafts: self.say(language, "drafts"),
            self.starting: label("start"),
            self.picture: label("start"),
            self.model: gr.update(
                label=self.say(language, "model"),
                choices=model_choices(self.words, language, self.jobs.offers.values()),
            ),
            self.about: self._about(language, model),
            self.between: label("between_seed", "between_hint"),
            self.seconds: gr.update(
                label=self.say(language, "seconds"), choices=page.seconds_choices(self.words, language)
            ),
            self.frames: label("rate"),
            self.seed: label("seed", "seed_hint"),
            self.fresh: label("fresh"),
            self.settings: label("settings"),
            self.bank: label("phrases"),
            self.guidance: label("guidance", "guidance_hint"),
            self.temperature: label("temperature", "temperature_hint"),
            self.top_k: label("top_k", "top_k_hint"),
            self.superres: label("superres"),
            self.comment: label("comment"),
            self.file: label("file"),
        }

    def _foot(self, language: str) -> str:
        words, link = self.say(language, "footer"), duplicate_link()
        return f"{words} · [{self.say(language, 'duplicate')}]({link})" if link else words

    def _brand(self, language: str) -> str:
        title, tagline = self.say(language, "title"), self.say(language, "tagline")
        return f'<div class="cv-brand">{_asset("favicon.svg")}<div><h1>{title}</h1><p>{tagline}</p></div></div>'

    def notice_of(self, words: str, kind: str) -> str:
        """A sentence below the button; read out at once. Whatever it quotes is shown as text."""
        role = "alert" if kind == "error" else "status"
        return f'<p class="cv-say" role="{role}" data-kind="{kind}">{html.escape(words)}</p>' if words else ""


def build_ui(jobs: Jobs) -> gr.Blocks:
    """The page for `jobs`. Nothing is served yet."""
    return Page(jobs).ui


def serve(jobs: Jobs, host: str, port: int, root_path: str | None = None) -> gr.Blocks:
    """Serves the page in the background and returns it; `close()` ends it. Raises OSError where the port is taken."""
    ui = build_ui(jobs)
    # Without these Gradio tells each waiting call about every other one, and sums all calls up after each.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000")
    ui.queue(default_concurrency_limit=None, api_open=True, status_update_rate=10)
    # Gradio asks its own server whether it is there: no proxy knows, and a busy machine takes more than its 3 seconds.
    others = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    os.environ["no_proxy"] = ",".join([*([others] if others else []), "localhost,127.0.0.1,::1", host])
    ui.launch(
        _frontend=False,
        server_name=host,
        server_port=port,
        root_path=root_path,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        mcp_server=find_spec("mcp") is not None,
        footer_links=[],
        run_history=False,  # Gradio's own keeps prompts in the browser and offers to send them to another host
        enable_monitoring=False,
        state_session_capacity=SESSIONS,
        max_file_size="64mb",
        theme=gr.themes.Base(font=FONTS, font_mono=["ui-monospace", "monospace"], radius_size="lg"),
        css=_asset("page.css"),
        head=f'<link rel="icon" href="{_icon()}"><script>{_asset("page.js")}</script>',
        favicon_path=str(FOLDER / "favicon.svg"),
        app_kwargs={
            "routes": routes(jobs),
            "exception_handlers": dict.fromkeys((*TRIPS, FnIndexInferError), malformed),
        },
    )
    return ui


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until it is interrupted. Raises CogVideoError."""
    options = parser().parse_args(arguments)
    port = free_port(options.host, options.port, options.any_port)
    limits = Limits(
        abandoned_seconds=options.drop_abandoned or None,
        idle_seconds=60 * options.unload_after or None,
        keep_bytes=int(options.keep_gb * 2**30),
    )
    jobs = open_jobs(
        data_folder(options.data),
        options.model,
        limits,
        options.device,
        options.eight_bit,
        options.offload,
        options.memory,
    )
    try:
        ui = serve(jobs, options.host, port, options.root_path)
        jobs.start(
            preload=jobs.preset.name == "mini" if options.preload is None else options.preload
        )  # after the page: reading the model must not keep it waiting
        url = f"http://{'127.0.0.1' if options.host == '0.0.0.0' else options.host}:{port}"
        print(f"打开 / Open: {url}\n停止 / Stop: Ctrl+C", flush=True)
        if options.browser:
            webbrowser.open(url)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            ui.block_thread()
        finally:
            ui.close()
    finally:
        jobs.close()
    return 0


def _form(values: Sequence[Any], seed: int | None) -> Form:
    """The form from the components' values; `seed` replaces the one on the page. Raises RequestError."""
    prompt, typed, frames, seconds, guidance, temperature, top_k, superres, between, start = values
    return Form(
        str(prompt or ""),
        seed if seed is not None else None if typed is None else int(typed),
        int(frames or 0),
        float(seconds or 0),
        float(guidance),
        float(temperature),
        int(top_k),
        bool(superres),
        _whole(between),
        start_of(start),
    )


def _whole(text: str | None) -> int | None:
    """A whole number that somebody typed, None for nothing. Raises RequestError."""
    try:
        return int(text) if text and text.strip() else None
    except ValueError:
        raise RequestError(
            f"中间帧的种子 {text} 不是整数：请输入 0 到 4294967295，或留空。",
            f"The seed of the in-betweens, {text}, is no whole number: give 0 to 4294967295, or leave it empty.",
        ) from None


def _start_of_job(view: View) -> dict[str, Any] | None:
    """A job's given first frame, with its own first picture as what the model saw."""
    if view.request.first_frame is None:
        return None
    picture = view.keyframes[0] if view.keyframes else view.poster
    return start_value(view.request.first_frame, f"media/{view.id}/{picture}" if picture else "")


def _merge(first: Updates, second: Updates) -> Updates:
    """Both updates; where both change the same component, all that either says about it."""
    merged = dict(first)
    for part, update in second.items():
        both = isinstance(update, dict) and isinstance(merged.get(part), dict)
        merged[part] = {**merged[part], **update} if both else update
    return merged


def _icon() -> str:
    """The page's icon as an address that is right below any path; Gradio's own begins at the host."""
    return f"data:image/svg+xml,{quote(_asset('favicon.svg'))}"


def _asset(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CogVideoError as error:
        sys.exit(f"{error.zh}\n{error.en}")
