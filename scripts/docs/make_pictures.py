"""Takes the pictures of the page that stand in the READMEs, one in each language: a film that mini has just finished.

Needs Chromium. Run it again after the page or mini changed.
python scripts/docs/make_pictures.py [--prompt 一只熊猫在草地上向右跑] [--seed 7] [--out assets/readme]
"""

from __future__ import annotations

import argparse
import io
import shutil
import socket
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cogvideo.jobs.service import open_jobs  # noqa: E402
from cogvideo.web import server  # noqa: E402

WINDOW = {"width": 1280, "height": 900}
SHARPNESS = 1.5
"""Pixels of a picture for one of the window."""
LANGUAGES = {"zh": "zh-CN", "en": "en-US"}
PATIENCE = 300_000
"""Milliseconds that a film may take."""
COLOURS = 256
"""Of a picture: more make the file larger than a README should load."""


def take(browser: Browser, url: str, locale: str, prompt: str, seed: int) -> bytes:
    """The page at `url` once it has made a film, as PNG; the film shows its middle."""
    page = browser.new_page(viewport=WINDOW, device_scale_factor=SHARPNESS, locale=locale, color_scheme="light")
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    expect(page.locator("html")).to_have_attribute("data-language", locale[:2], timeout=PATIENCE)
    page.locator("#cv-prompt textarea").fill(prompt)
    page.locator("#cv-fresh input").uncheck()
    page.locator("#cv-seed input").fill(str(seed))
    page.locator("#cv-seed input").press("Tab")
    page.locator("#cv-make").click()
    expect(page.locator(".cv-screen")).to_have_attribute("data-state", "done", timeout=PATIENCE)
    film = page.locator(".cv-film[src$='final.mp4']:not([hidden])")
    film.evaluate(
        """film => new Promise(shown => {
            film.pause();
            film.controls = false;
            film.requestVideoFrameCallback(() => requestAnimationFrame(() => requestAnimationFrame(shown)));
            film.currentTime = film.duration / 2;
        })"""
    )
    page.mouse.move(0, 0)
    page.evaluate("() => { document.activeElement.blur(); scrollTo(0, 0); }")
    picture = page.screenshot()
    page.close()
    return picture


def smaller(picture: bytes) -> bytes:
    """The same picture in few enough colours."""
    out = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS).save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    """Serves the page with mini from an empty folder and takes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="一只熊猫在草地上向右跑")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "assets" / "readme")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, closing(open_jobs(Path(folder), "mini")) as jobs:
        ui = server.serve(jobs, "127.0.0.1", port)
        jobs.start(preload=True)
        with closing(ui), sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for name, locale in LANGUAGES.items():
                path = options.out / f"page_{name}.png"
                path.write_bytes(
                    smaller(take(browser, f"http://127.0.0.1:{port}/", locale, options.prompt, options.seed))
                )
                print(path, path.stat().st_size // 1024, "KiB")
            browser.close()


if __name__ == "__main__":
    main()
