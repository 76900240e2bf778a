"""For tests of the page in a real browser: a visitor, a site in this process, a server that can be killed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cogvideo.jobs.service import JobService
from tests.support.fakes import FakePipeline

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None and os.environ.get("COGVIDEO_BROWSER_TESTS") != "required":
    pytest.skip("no Chromium found; the browser tests need one", allow_module_level=True)

from playwright.sync_api import Page, expect  # noqa: E402

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
PANDA = "一只熊猫在草地上向右跑"

PATIENCE = 120_000  # milliseconds: a busy machine is no failure
expect.set_options(timeout=PATIENCE)


def no_timer_from(milliseconds: int) -> str:
    """A script for a page in which no timer of so many milliseconds or more ever fires."""
    return f"""for (const name of ["setTimeout", "setInterval"]) {{
        const begin = window[name];
        window[name] = (call, wait, ...rest) => (wait >= {milliseconds} ? 0 : begin(call, wait, ...rest));
    }}"""


@dataclass
class Site:
    """A served page, its jobs and the pipeline behind them."""

    url: str
    jobs: JobService
    fake: FakePipeline


@dataclass
class Visitor:
    """One person's browser, and everything it complained about or asked other hosts for."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    forgiven: bool = False
    """The server was away for a while, and the browser may say so."""

    def __post_init__(self) -> None:
        self.page.on("console", lambda message: message.type == "error" and self._complained(message.text))
        self.page.on("pageerror", lambda error: self._complained(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))

    def _complained(self, words: str) -> None:
        """Gradio itself complains when a page with an open stream of events is left; everything else counts."""
        if not re.search("signal is aborted|Connection errored out", words):
            self.complaints.append(words)

    def _asked(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.foreign.append(url)

    def open(self, url: str) -> Visitor:
        self.page.goto(url)
        expect(self.page.locator(".cv-chips button").first).to_be_visible()
        expect(self.page.locator("html")).to_have_attribute("data-language", re.compile("zh|en"))
        return self

    def ask(self, prompt: str = PANDA) -> Visitor:
        self.page.locator("#cv-prompt textarea").fill(prompt)
        self.page.locator("#cv-make").click()
        return self

    def has_state(self, state: str) -> None:
        expect(self.page.locator(".cv-screen")).to_have_attribute("data-state", state)

    def has_cells(self, count: int, done: int) -> None:
        expect(self.page.locator(".cv-cells > div")).to_have_count(count)
        expect(self.page.locator(".cv-cells > div[data-state=done]")).to_have_count(done)

    def film(self) -> Any:
        return self.page.locator(".cv-film:not([hidden])")

    def choose(self, group: str, label: str) -> None:
        self.page.locator(group).get_by_label(label, exact=True).check()

    def job(self) -> str:
        return parse_qs(urlsplit(self.page.url).query)["job"][0]


class Server:
    """serve_fake.py in a process of its own."""

    def __init__(self, data: Path, port: int) -> None:
        script = Path(__file__).with_name("serve_fake.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(data), str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert any(line.strip() == "up" for line in self._process.stdout)

    def order(self, words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(words + "\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE / 1000)

    def quit(self) -> None:
        self.order("quit")
        self._process.wait(PATIENCE / 1000)
