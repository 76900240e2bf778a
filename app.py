"""The page: type a Chinese sentence, watch five keyframes appear and then the frames between them, share a link.

`python app.py` serves it; a Hugging Face Space does just that. All model work happens in the worker of
`cogvideo.jobs`; a handler here only submits jobs and shows their newest view.
"""

from __future__ import annotations

import argparse
import functools
import html
import json
import logging
import os
import signal
import socket
import sys
import webbrowser
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cogvideo import page
from cogvideo.config import MAX_GUIDANCE, MEMORY, PRESETS, VideoRequest
from cogvideo.errors import CapacityError, CogVideoError, RequestError
from cogvideo.jobs import Jobs, Limits, new_key, new_seed, open_jobs, read_settings
from cogvideo.live import Live
from cogvideo.page import FOLDER, Form, Words

LOG = logging.getLogger(__name__)

GALLERY = Path(__file__).resolve().parent / "examples" / "gallery"
BEAT = 2.0
"""Seconds between two signs of life of an unchanged job; the page connects again after missing two."""
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
    """An endpoint whose errors reach the program as a sentence in both languages."""

    @functools.wraps(endpoint)
    def answer(*values: Any, **named: Any) -> dict[str, Any]:
        try:
            return endpoint(*values, **named)
        except CogVideoError as error:
            raise gr.Error(html.escape(f"{error.en} / {error.zh}"), print_exception=False) from error

    return answer


class Page:
    """The components of the page and what happens on them. One instance serves all visitors."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.words = Words.load()
        self.base = jobs.preset.sampling
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
        self.foot = gr.Markdown(self.say("zh", "footer", model=self.jobs.preset.name), elem_id="cv-foot")

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
            self.make = gr.Button(zh["make"], variant="primary", elem_id="cv-make")
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
            self.outcome = gr.HTML(self._outcome("zh", usual), apply_default_css=False, elem_id="cv-outcome")
            with gr.Group():
                self.seed = gr.Number(label=zh["seed"], info=zh["seed_hint"], precision=0, elem_id="cv-seed")
                self.fresh = gr.Checkbox(value=True, label=zh["fresh"], elem_id="cv-fresh")
            with gr.Accordion(zh["phrases"], open=False, elem_id="cv-phrases") as self.bank:
                self.phrases = gr.HTML(
                    json.loads(_asset("phrases.json")),
                    html_template="<div></div>",
                    js_on_load=_asset("chips.js"),
                    apply_default_css=False,
                )
            with gr.Accordion(zh["settings"], open=False, elem_id="cv-settings") as self.settings:
                self.guidance = gr.Slider(
                    1, MAX_GUIDANCE / 2, usual.guidance, step=0.5, label=zh["guidance"], info=zh["guidance_hint"]
                )
                self.temperature = gr.Slider(
                    0.5, 1.5, usual.temperature, step=0.05, label=zh["temperature"], info=zh["temperature_hint"]
                )
                self.top_k = gr.Slider(1, 40, usual.top_k, step=1, label=zh["top_k"], info=zh["top_k_hint"])
                self.superres = gr.Checkbox(value=usual.superres, label=zh["superres"])
                self.comment = gr.Checkbox(value=True, label=zh["comment"])
                self.file = gr.File(label=zh["file"], file_types=[".mp4", ".gif"], height=110, elem_id="cv-file")
        self.form = [
            self.prompt,
            self.seed,
            self.frames,
            self.seconds,
            self.guidance,
            self.temperature,
            self.top_k,
            self.superres,
        ]

    def _connect(self) -> None:
        wish = [self.me, *self.form, self.fresh, self.comment]
        asked = [self.me, self.screen, self.notice, self.seed, self.shelf]
        filled = [*self.form, self.fresh, self.outcome, self.notice]
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        clothes = list(self._clothes("zh"))
        everything = list(dict.fromkeys([self.me, self.language, *clothes, *filled, self.screen, self.shelf]))

        self.ui.load(self.enter, [self.me], everything, **quiet)
        self.make.click(self.submit, wish, asked, **quiet)
        self.prompt.submit(self.submit, wish, asked, **quiet)
        self.screen.again(self.again, [self.me], [*asked, *filled], **quiet)
        self.screen.settled(self.history, [self.me], [self.shelf], **quiet)
        self.shelf.open(self.show, [self.me], [self.screen, self.notice], **quiet)
        self.screen.stop(self.stop, [self.me], [self.notice], **quiet)
        self.screen.reuse(self.reuse, [self.me], filled, **quiet)
        self.shelf.reuse(self.reuse, [self.me], filled, **quiet)
        self.shelf.vary(self.vary, [self.me], filled, **quiet)
        self.shelf.remove(self.remove, [self.me], [self.shelf, self.notice], **quiet)
        self.file.upload(self.restore, [self.me, self.file], [*filled, self.file], **quiet)
        self.chips.choose(self.choose, None, [self.prompt], **quiet)
        self.phrases.choose(self.append, [self.prompt], [self.prompt], **quiet)
        self.language.input(
            self.speak,
            [self.me, self.language, self.frames, self.seconds, self.superres],
            [self.me, *clothes, self.outcome],
            js="(me, language, ...rest) => { window.cv.setLanguage(language); return [me, language, ...rest]; }",
            **quiet,
        )
        self.prompt.change(
            self.read, [self.me, self.prompt, self.superres], [self.reading], trigger_mode="always_last", **quiet
        )
        for control in (self.seconds, self.frames, self.superres):
            control.change(
                self.reckon, [self.me, self.frames, self.seconds, self.superres], [self.frames, self.outcome], **quiet
            )

    def _publish(self) -> None:
        """The same jobs for programs: named endpoints for gradio_client, curl and MCP."""

        def make_video(
            prompt: str,
            seed: int = -1,
            frames: int = 33,
            seconds: float = 4.0,
            superres: bool = self.usual.superres,
            guidance: float = 0.0,
            key: str = "",
        ) -> dict[str, Any]:
            """Ask for a video of a Chinese prompt.

            Args:
                prompt: what to show, in Chinese
                seed: 0 to 4294967295; -1 draws one
                frames: 5, 9, 17 or 33
                seconds: 4, 2, 1 or 0.5
                superres: whether the frames are enlarged three times at the end
                guidance: how strictly the prompt counts; 1 switches guidance off, 0 leaves it to the model
                key: whoever has it may stop and delete the video; empty makes one
            """
            key = key or new_key()
            drawn = new_seed() if seed == -1 else seed
            form = replace(self.usual, prompt=prompt, seed=drawn, frames=frames, seconds=seconds, superres=superres)
            form = replace(form, guidance=guidance or form.guidance)
            view = self.jobs.submit(form.request(self.base), key)
            return {"id": view.id, "key": key, "seed": view.request.seed}

        def video(id: str) -> dict[str, Any]:
            """How far a video is, and where its file lies once there is one.

            Args:
                id: as `make_video` gave it
            """
            view = self.jobs.view(id)
            return {
                **{name: getattr(view, name) for name in ("id", "status", "stage", "done", "total", "seconds_left")},
                "place": view.place,
                "error": view.error,
                "notes": view.notes,
                "file": f"media/{view.id}/{view.video}" if view.video else None,
            }

        def stop_video(id: str, key: str) -> dict[str, Any]:
            """Stop a video; what was drawn so far is kept.

            Args:
                id: as `make_video` gave it
                key: as `make_video` gave it
            """
            self.jobs.stop(id, key)
            return {"id": id}

        def delete_video(id: str, key: str) -> dict[str, Any]:
            """Delete a video and its files.

            Args:
                id: as `make_video` gave it
                key: as `make_video` gave it
            """
            self.jobs.delete(id, key)
            return {"id": id}

        for endpoint in (make_video, video, stop_video, delete_video):
            gr.api(  # type: ignore[attr-defined]
                _for_programs(endpoint), api_name=endpoint.__name__, concurrency_id="programs", concurrency_limit=2
            )

    # What happens.

    def enter(self, me: Any, request: gr.Request) -> Updates:
        """Somebody opens or reloads the page: their language, the job or the settings of the link, their history."""
        query = dict(request.query_params)
        me = self.known(me, query.get("lang") or request.headers.get("accept-language"))
        language = me["language"]
        updates = _merge(self._clothes(language), self._rates(self.usual, language))
        updates = _merge(updates, {self.seed: gr.update(value=new_seed())})
        form, words, kind = self._from_link(query, language)
        view = None
        if "job" in query:
            try:
                view = self.jobs.view(query["job"])
            except RequestError as error:
                words, kind = (self.say(language, "shared_gone"), "") if form else (error.message(language), "error")
            else:
                form, words = form or Form.of(view.request, self.base), ""
        view = view or next((own for own in self.jobs.history(me["key"], 5) if own.active and not form), None)
        if form:
            updates = _merge(updates, self._fill(form, language))
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
        *form, fresh, comment = values
        request = _form(form, new_seed() if fresh else None).request(self.base)
        return self._ask(request, me, comment)

    @_said
    def again(self, me: Any, event: gr.EventData) -> Updates:
        """A new job from the one on the screen, with one thing changed."""
        view = self.jobs.view(str(event.id))
        request = page.changed(view.request, str(event.change))
        updates = self._fill(Form.of(request, self.base), me["language"])
        return _merge(updates, self._ask(request, me, view.comment))

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
        form = Form.of(self.jobs.view(str(event.id)).request, self.base)
        return {**self._fill(form, me["language"]), self.notice: ""}

    @_said
    def restore(self, me: Any, file: str | None) -> Updates:
        """Fills the form with the settings inside a file that was downloaded here."""
        language = me["language"]
        request = read_settings(Path(file)) if file else None
        if request is None:
            return {self.file: None, self.notice: self.notice_of(self.say(language, "file_without"), "error")}
        notice = self.notice_of(self.say(language, "file_restored"), "")
        return {**self._fill(Form.of(request, self.base), language), self.file: None, self.notice: notice}

    @_said
    def vary(self, me: Any, event: gr.EventData) -> Updates:
        """Fills the form with the settings of a clip of the gallery, with a seed of its own."""
        clip = self.gallery[int(event.index)]
        form = replace(
            self.usual, prompt=clip["prompt"], seed=new_seed(), frames=clip["frames"], seconds=clip["seconds"]
        )
        return {**self._fill(form, me["language"]), self.fresh: True, self.notice: ""}

    def choose(self, event: gr.EventData) -> str:
        return str(event.text)

    def read(self, me: Any, prompt: str, superres: bool) -> str:
        """What the model reads of the prompt; nothing while there is nothing to read."""
        try:
            reading = self.jobs.read(VideoRequest(prompt, superres=superres))
        except CogVideoError:
            return ""
        return page.reading_html(self.words, self.known(me)["language"], reading.pieces, reading.limit)

    def append(self, prompt: str, event: gr.EventData) -> str:
        return f"{prompt}{event.text}"

    def speak(self, me: Any, language: str, frames: int, seconds: float, superres: bool) -> Updates:
        """The page in another language."""
        me = {**self.known(me), "language": language}
        form = Form(frames=frames, seconds=seconds, superres=superres)
        clothes = _merge(self._clothes(language), self._rates(form, language))
        return {**clothes, self.me: me}

    def reckon(self, me: Any, frames: int, seconds: float, superres: bool) -> Updates:
        """What comes of the chosen frame rate and length."""
        return self._rates(Form(frames=frames, seconds=seconds, superres=superres), self.known(me)["language"])

    def history(self, me: Any) -> list[dict[str, Any]]:
        return [page.card_value(view) for view in self.jobs.history(self.known(me)["key"])]

    # Pieces.

    def _ask(self, request: VideoRequest, me: dict[str, str], comment: bool) -> Updates:
        view = self.jobs.submit(request, me["key"], comment)
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
        value = page.screen_value(self.jobs.view(job), self.jobs.preset)
        return {**value, "mine": self.jobs.holds(job, key)}

    def known(self, me: Any, accepted: str | None = None) -> dict[str, str]:
        """What the browser remembers, made good where it remembers nothing sensible."""
        me = me if isinstance(me, dict) else {}
        key, language = me.get("key"), me.get("language")
        return {
            "key": key if isinstance(key, str) and len(key) >= 16 else new_key(),
            "language": language if language in page.LANGUAGES else page.preferred_language(accepted),
        }

    def _from_link(self, query: dict[str, str], language: str) -> tuple[Form | None, str, str]:
        """The form a link describes, and a sentence about it with its kind."""
        try:
            form = Form.from_query(query, self.usual)
            if form and form.seed is not None:
                form.request(self.base)
        except RequestError as error:
            return None, self.say(language, "bad_settings", reason=error.message(language)), "error"
        return form, self.say(language, "shared_settings") if form else "", ""

    def _fill(self, form: Form, language: str) -> Updates:
        values = [form.prompt, form.seed if form.seed is not None else new_seed(), form.frames, form.seconds]
        values += [form.guidance, form.temperature, form.top_k, form.superres]
        updates: Updates = {part: gr.update(value=value) for part, value in zip(self.form, values, strict=True)}
        return _merge(updates, {self.fresh: gr.update(value=form.seed is None), **self._rates(form, language)})

    def _rates(self, form: Form, language: str) -> Updates:
        return {
            self.frames: gr.update(choices=page.rate_choices(self.words, language, form.seconds), value=form.frames),
            self.outcome: self._outcome(language, form),
        }

    def _outcome(self, language: str, form: Form) -> str:
        estimate = self.jobs.estimate(VideoRequest("", 0, form.frames, form.seconds, form.superres))
        said = page.outcome(self.words, language, form.frames, form.seconds, estimate)
        waiting = self.jobs.queue_length()
        if waiting:
            said += ("" if language == "zh" else " ") + self.say(language, "busy", count=waiting)
        return f"<p>{said}</p>"

    def _clothes(self, language: str) -> Updates:
        """Every label of the form in `language`."""

        def label(key: str, info: str | None = None) -> Any:
            said = {"label": self.say(language, key)}
            return {**gr.update(), **said, **({"info": self.say(language, info)} if info else {})}

        return {
            self.brand: self._brand(language),
            self.foot: self.say(language, "footer", model=self.jobs.preset.name),
            self.language: label("language"),
            self.prompt: gr.update(label=self.say(language, "prompt"), placeholder=self.say(language, "prompt_hint")),
            self.make: self.say(language, "make"),
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
    ui.launch(
        server_name=host,
        server_port=port,
        root_path=root_path,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        footer_links=[],
        state_session_capacity=SESSIONS,
        max_file_size="64mb",
        theme=gr.themes.Base(font=FONTS, font_mono=["ui-monospace", "monospace"], radius_size="lg"),
        css=_asset("page.css"),
        head=f"<script>{_asset('page.js')}</script>",
        favicon_path=str(FOLDER / "favicon.svg"),
        app_kwargs={"routes": routes(jobs)},
    )
    return ui


def routes(jobs: Jobs) -> list[Route]:
    """A job as it grows and its files, for whoever knows its id; the clips of the gallery; a sign of life."""
    live = Live(jobs, lambda view: page.screen_value(view, jobs.preset), BEAT)

    async def watch(request: Request) -> Response:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # no proxy may hold anything back
        return StreamingResponse(
            _server_sent(live.watch(request.path_params["job"])), 200, headers, "text/event-stream"
        )

    def media(request: Request) -> Response:
        path = jobs.file(request.path_params["job"], request.path_params["name"])
        if path is None:
            return Response("not found", 404)
        name = f"cogvideo{path.suffix}" if "download" in request.query_params else None
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, headers=headers, filename=name)

    def gallery(request: Request) -> Response:
        names = {clip["file"] for clip in load_gallery()}
        name = request.path_params["name"]
        if name not in names:
            return Response("not found", 404)
        return FileResponse(GALLERY / name, headers={"Cache-Control": "public, max-age=86400"})

    def alive(_: Request) -> Response:
        return JSONResponse({"alive": True}, headers={"Cache-Control": "no-store"})

    return [
        Route("/watch/{job}", watch),
        Route("/media/{job}/{name}", media),
        Route("/gallery/{name}", gallery),
        Route("/alive", alive),
    ]


async def _server_sent(texts: AsyncIterator[str]) -> AsyncIterator[str]:
    """Texts as server-sent events; "" becomes the event `beat`."""
    yield "retry: 1000\n\n"
    async for text in texts:
        yield f"data: {text}\n\n" if text else "event: beat\ndata:\n\n"


def load_gallery() -> list[dict[str, Any]]:
    """Clips made beforehand that are really there."""
    index = GALLERY / "gallery.json"
    if not index.is_file():
        return []
    clips: list[dict[str, Any]] = json.loads(index.read_text("utf-8"))
    return [clip for clip in clips if (GALLERY / clip["file"]).is_file()]


def share_base() -> str:
    """Where links should lead: the Space's own page, or, where this is empty, the address the browser sees."""
    space = os.environ.get("SPACE_ID")
    return f"https://huggingface.co/spaces/{space}" if space else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until it is interrupted. Raises CogVideoError."""
    options = _parser().parse_args(arguments)
    port = _free_port(options.host, options.port, options.any_port)
    on_space = bool(os.environ.get("SPACE_ID"))
    limits = Limits(abandoned_seconds=120.0 if on_space else None, keep_bytes=int(options.keep_gb * 2**30))
    jobs = open_jobs(
        _data_folder(options.data),
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python app.py", description="在浏览器里把中文变成视频。 Chinese text becomes video, in the browser."
    )
    on_space = bool(os.environ.get("SPACE_ID"))
    host = os.environ.get("GRADIO_SERVER_NAME") or ("0.0.0.0" if on_space else "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT") or 7860)
    parser.add_argument("--host", default=host, help="address to serve at; 0.0.0.0: for other machines too")
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--any-port", action="store_true", help="take the next free port where this one is taken")
    parser.add_argument(
        "--model", help=f"{', '.join(PRESETS)} (default: $COGVIDEO_MODEL, else cogvideo where it can run, else mini)"
    )
    parser.add_argument("--memory", help=f"{', '.join(MEMORY)} (default: $COGVIDEO_MEMORY, else what fits)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda where there is one)")
    parser.add_argument("--eight-bit", action="store_true", help="keep the weights in 8 bits: less memory, slower")
    parser.add_argument("--offload", action="store_true", help="keep on the card only the network at work")
    parser.add_argument("--data", type=Path, help="folder of the queue and the clips (default: ./data)")
    parser.add_argument("--keep-gb", type=float, default=2.0, help="finished clips kept, oldest go first (default: 2)")
    parser.add_argument("--root-path", help="path below which a proxy serves the page, such as /video")
    parser.add_argument(
        "--preload",
        action=argparse.BooleanOptionalAction,
        help="load the model now, not with the first prompt (default: for mini)",
    )
    parser.add_argument(
        "--browser",
        action=argparse.BooleanOptionalAction,
        default=_has_desktop() and not on_space,
        help="open the page in a browser",
    )
    return parser


def _has_desktop() -> bool:
    """Whether somebody sits in front of this machine, as far as can be told; never start a browser in a terminal."""
    if not sys.stdout.isatty():
        return False
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _free_port(host: str, port: int, search: bool) -> int:
    for candidate in range(port, port + 50 if search else port + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError:
                continue
            return candidate
    raise CapacityError(
        f"{host} 的端口 {port} 不可用，可能已有一个服务在运行：请关闭它，"
        "或用 --port 换一个端口（--any-port 自动寻找）。",
        f"Port {port} of {host} cannot be used, perhaps another server runs there: "
        "close it, or choose another with --port (--any-port looks for one).",
    )


def _data_folder(chosen: Path | None) -> Path:
    """The folder of queue and clips: as chosen, or here, or, where here is read-only, in the user's own data folder."""
    folder = chosen or Path(os.environ.get("COGVIDEO_DATA") or "data")
    explicit = bool(chosen or os.environ.get("COGVIDEO_DATA"))
    if not explicit and not os.access(folder if folder.exists() else Path.cwd(), os.W_OK):
        folder = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "cogvideo"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CapacityError(
            f"无法使用数据文件夹 {folder}（{error.strerror}）：请用 --data 指定一个可写的文件夹。",
            f"The data folder {folder} cannot be used ({error.strerror}): name one that can be written with --data.",
        ) from error
    return folder


def _form(values: Sequence[Any], seed: int | None) -> Form:
    """The form from the components' values; `seed` replaces the one on the page. Raises RequestError."""
    prompt, typed, frames, seconds, guidance, temperature, top_k, superres = values
    return Form(
        str(prompt or ""),
        seed if seed is not None else None if typed is None else int(typed),
        int(frames or 0),
        float(seconds or 0),
        float(guidance),
        float(temperature),
        int(top_k),
        bool(superres),
    )


def _merge(first: Updates, second: Updates) -> Updates:
    """Both updates; where both change the same component, all that either says about it."""
    merged = dict(first)
    for part, update in second.items():
        both = isinstance(update, dict) and isinstance(merged.get(part), dict)
        merged[part] = {**merged[part], **update} if both else update
    return merged


def _asset(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CogVideoError as error:
        sys.exit(f"{error.zh}\n{error.en}")
