"""The page: type a Chinese sentence, watch five keyframes appear and then the frames between them, share a link.

`python app.py` serves it; a Hugging Face Space does just that. All model work happens in the worker of
`cogvideo.jobs`; the page (`cogvideo.page_parts`, `cogvideo.page_actions`) submits jobs and shows their newest view.
"""

from __future__ import annotations

import functools
import html
import os
import signal
import sys
import webbrowser
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote

import gradio as gr
from gradio.route_utils import FnIndexInferError

from cogvideo.console import REFUSED
from cogvideo.errors import CogVideoError
from cogvideo.jobs import Jobs, Limits, open_jobs
from cogvideo.page import FOLDER, Words
from cogvideo.page_actions import Actions
from cogvideo.page_api import endpoints
from cogvideo.page_direct import direct
from cogvideo.page_malformed import TRIPS, malformed
from cogvideo.page_parts import Parts, asset
from cogvideo.page_routes import load_gallery, routes
from cogvideo.serving import claim_card, data_folder, free_port, parser

SESSIONS = 100
"""Visitors whose components Gradio remembers. The page keeps nothing there; each costs 150 KB and is made in 20 ms."""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif"]
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
SPEAK = "(me, language, ...rest) => { window.cv.setLanguage(language); return [me, language, ...rest]; }"


def build_ui(jobs: Jobs) -> gr.Blocks:
    """The page for `jobs`. Nothing is served yet."""
    words, gallery = Words.load(), load_gallery()
    with gr.Blocks(
        title=words.say("zh", "title"), analytics_enabled=False, fill_width=True, delete_cache=(3600, 3600)
    ) as ui:
        parts = Parts(words, list(jobs.offers.values()), gallery, jobs.secret("browser"))
        actions = Actions(jobs, parts, gallery)
        _connect_wish(parts, actions)
        _connect_screen(parts, actions)
        _connect_form(parts, actions)
        _connect_page(ui, parts, actions)
        _publish(jobs)
    return ui


def _connect_wish(parts: Parts, actions: Actions) -> None:
    """The sentence and the buttons that ask for a video."""
    wish = [parts.me, *parts.form, parts.model, parts.memory, parts.fresh, parts.comment]
    asked = [parts.me, parts.screen, parts.notice, parts.seed, parts.shelf]
    parts.make.click(actions.submit, wish, asked, **QUIET)
    parts.drafts.click(actions.draft, wish, asked, **QUIET)
    parts.prompt.submit(actions.submit, wish, asked, **QUIET)
    parts.screen.again(actions.again, [parts.me], [*asked, *parts.filled], **QUIET)
    parts.chips.choose(actions.choose, None, [parts.prompt], **QUIET)
    parts.phrases.choose(actions.append, [parts.prompt], [parts.prompt], **QUIET)
    read = [parts.me, parts.prompt, parts.superres, parts.model]
    parts.prompt.change(actions.read, read, [parts.reading], trigger_mode="always_last", **QUIET)


def _connect_screen(parts: Parts, actions: Actions) -> None:
    """The job on the stage, and the shelves below it."""
    look_again: dict[str, Any] = {
        "fn": actions.look_again,
        "inputs": [parts.me, *_reckoned(parts)],
        "outputs": [parts.shelf, parts.outcome],
        **QUIET,
    }
    parts.screen.settled(**look_again)
    parts.shelf.refresh(**look_again)
    # Pressed again, it is sent again: the first request may be lost, and Gradio would wait for its answer.
    parts.screen.stop(actions.stop, [parts.me], [parts.notice], trigger_mode="multiple", **QUIET)
    parts.shelf.open(actions.show, [parts.me], [parts.screen, parts.notice], **QUIET)
    parts.shelf.remove(actions.remove, [parts.me], [parts.shelf, parts.notice], **QUIET)
    for event, handler in (
        (parts.screen.go_on, actions.go_on),
        (parts.screen.reuse, actions.reuse),
        (parts.shelf.reuse, actions.reuse),
        (parts.shelf.vary, actions.vary),
        (parts.screen.vary, actions.vary),
    ):
        event(handler, [parts.me], parts.filled, **QUIET)


def _connect_form(parts: Parts, actions: Actions) -> None:
    """Everything else that can be chosen or dropped."""
    reckoned = _reckoned(parts)
    changes = [parts.seconds.change, parts.frames.change, parts.superres.change, parts.memory.input]
    reckon: dict[str, Any] = {
        "fn": actions.reckon,
        "inputs": [parts.me, *reckoned],
        "outputs": [parts.frames, parts.outcome],
        "trigger_mode": "always_last",
        **QUIET,
    }
    # What changes at once is asked about at once, and the answers come in any order: after each, how it is now.
    gr.on(changes, **reckon).then(**reckon)
    usual = [parts.guidance, parts.temperature, parts.top_k, parts.superres]
    about = [parts.begin, parts.about, parts.memory, parts.frames, parts.outcome]
    switch = [parts.me, parts.model, parts.frames, parts.seconds]
    parts.model.input(actions.switch, switch, [*usual, *about], trigger_mode="always_last", **QUIET)
    parts.file.upload(actions.restore, [parts.me, parts.file], [*parts.filled, parts.file], **QUIET)
    look = [parts.me, parts.picture, parts.model]
    parts.picture.upload(actions.look, look, [parts.begin, parts.picture, parts.notice], **QUIET)


def _connect_page(ui: gr.Blocks, parts: Parts, actions: Actions) -> None:
    """Coming, reloading, another language."""
    clothes = [parts.me, *parts.clothed, parts.outcome, parts.reading]
    everything = [*clothes, parts.language, *parts.filled, parts.screen, parts.shelf]
    ui.load(actions.enter, [parts.me], list(dict.fromkeys(everything)), **QUIET)
    speak = [parts.me, parts.language, parts.prompt, *_reckoned(parts)]
    # By default Gradio drops a choice that is made while the answer to the one before is under way.
    parts.language.input(actions.speak, speak, clothes, js=SPEAK, trigger_mode="always_last", **QUIET)


def _reckoned(parts: Parts) -> list[Any]:
    """What the length of a run depends on."""
    return [parts.frames, parts.seconds, parts.superres, parts.model, parts.memory]


def _publish(jobs: Jobs) -> None:
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
        favicon_path=str(FOLDER / "favicon.svg"),
        app_kwargs={
            "routes": [*routes(jobs), *direct(endpoints(jobs))],
            "exception_handlers": dict.fromkeys((*TRIPS, FnIndexInferError), malformed),
        },
        **_looks(),
    )
    return ui


def _looks() -> dict[str, Any]:
    """Theme, styles and scripts of the page. Its icon is right below any path; Gradio's begins at the host."""
    icon = f"data:image/svg+xml,{quote(asset('favicon.svg'))}"
    return {
        "theme": gr.themes.Base(font=FONTS, font_mono=["ui-monospace", "monospace"], radius_size="lg"),
        "css": asset("page.css"),
        "head": f'<link rel="icon" href="{icon}"><script>{asset("page.js")}{asset("follow.js")}</script>',
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves the page until it is interrupted. Raises CogVideoError."""
    options = parser().parse_args(arguments)
    claim_card()
    port = free_port(options.host, options.port, options.any_port)
    limits = Limits(
        abandoned_seconds=options.drop_abandoned or None,
        idle_seconds=60 * options.unload_after or None,
        keep_bytes=int(options.keep_gb * 2**30),
    )
    place = (options.device, options.eight_bit, options.offload, options.memory)
    jobs = open_jobs(data_folder(options.data), options.model, limits, *place)
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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CogVideoError as error:
        print(f"{error.zh}\n{error.en}", file=sys.stderr)
        sys.exit(REFUSED)
