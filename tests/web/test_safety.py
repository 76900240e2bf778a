"""What others may not do: be interpreted, guess, list, stop what is not theirs, or read the server's files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from urllib.parse import quote, urlencode

import httpx
from playwright.sync_api import Page

from cogvideo.jobs.service import new_key
from cogvideo.media.metadata import read_metadata
from cogvideo.request import VideoRequest
from cogvideo.tokenizers.prompt import clean_prompt
from tests.support.browsing import PANDA, Site, Visitor, expect

HOSTILE = {
    "html": '熊<img src=x onerror="window.owned=1"><script>window.owned=1</script><b>粗</b>&amp;&lt;',
    "quotes": "熊\"'`' onmouseover='window.owned=1' \" autofocus onfocus=\"window.owned=1",
    "templates": "熊{{7*7}}${window.owned=1}{value}%s%(x)s#{1}<%= 1 %>",
    "path": "熊/../../../etc/passwd\\..\\..\\con:nul?*|final.mp4",
    "url": "熊 javascript:window.owned=1 data:text/html,<script>window.owned=1</script>",
    "emoji": "熊🐼👩‍👩‍👧‍👦🏳️‍🌈",
    "sql": "熊'); DROP TABLE jobs; --",
    "rtl": "熊\u202e\u2066gpj.exe\u2069\u202c",
    "zero width": "熊\u200b\u200d\ufeff猫\u2060",
    "markdown": "熊 **粗** [x](javascript:window.owned=1) # 标题",
}
INVISIBLE = re.compile("[\u0000-\u001f\u007f-\u009f\u200b\u200d\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
FILE_NAME = re.compile(r"(key|level|final|kept)[\w-]*\.(webp|mp4)|frames\.npz|tokens[\w.-]*|clip\.gif|frames\.zip")
MARKUP = "body *:is(script, iframe, object, embed, img[src=x])"


def harmless(page: Page, parts: int) -> None:
    assert page.evaluate("() => window.owned === undefined")
    assert page.locator(MARKUP).count() == parts
    expect(page).to_have_title("CogVideo · 人人可用")


def test_hostile_prompt_is_shown_as_text(site: Site, visit: Callable[..., Visitor]) -> None:
    site.fake.open()
    visitor = visit().open(f"{site.url}?lang=zh")
    page = visitor.page
    parts = page.locator(MARKUP).count()
    visitor.choose("#cv-rate", "1 帧/秒")
    links = []
    for hostile in HOSTILE.values():
        kept = clean_prompt(hostile)[0]  # without markup and what nobody sees; the page says so
        assert "熊" in kept and not INVISIBLE.search(kept) and "<img" not in kept and "<script" not in kept
        visitor.ask(hostile)
        expect(page.locator(".cv-status .cv-wish")).to_have_text(kept)
        visitor.has_state("done")
        expect(page.locator("[data-shelf=history] .cv-card .cv-wish").first).to_have_text(kept)
        harmless(page, parts)
        page.locator("[data-act=share]").click()
        links.append(page.locator(".cv-link").input_value())
        assert links[-1].isascii() and not re.search(r"""[\s<>"`{}\\^|]""", links[-1])
        path = site.jobs.file(visitor.job(), "final.mp4")
        assert path and (read_metadata(path) or {})["prompt"] == kept
        for file in path.parent.iterdir():
            assert FILE_NAME.fullmatch(file.name), file.name
    for number in (0, 1):
        shared = visit().open(links[number])
        expect(shared.page.locator("#cv-prompt textarea")).to_have_value(clean_prompt([*HOSTILE.values()][number])[0])
        harmless(shared.page, parts)


def test_control_characters_are_refused(site: Site) -> None:
    started = len(site.fake.started)
    for character in "\x00\x07\x1b\x7f":
        said = call(site.url, "make_video", f"熊{character}猫", 1, 5, 4, False, 0, "")
        assert "event: error" in said and f"U+{ord(character):04X}" in said
    assert len(site.fake.started) == started and site.jobs.queue_length() == 0


def test_invisible_prompt_counts_as_empty(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit().open(site.url).ask("\u200b\u202e \ufeff")
    expect(visitor.page.get_by_role("alert")).to_contain_text("是空的")
    visitor.has_state("empty")


def test_hostile_link_changes_only_the_form(site: Site, visit: Callable[..., Visitor]) -> None:
    script = "<img src=x onerror=window.owned=1>"
    started = len(site.fake.started)
    for query in (
        {"p": script + "熊", "s": "1", "d": "4", "f": "9"},
        {"p": "熊", "s": script},
        {"job": script},
        {"job": "../../jobs.sqlite"},
        {"job": "x" * 3000},
        {"lang": script, "p": "熊", "g": "nan", "k": "1e9"},
        {"__theme": script, "view": script, "deep_link": "../../x"},
    ):
        visitor = visit().open(f"{site.url}?{urlencode(query)}")
        visitor.has_state("empty")
        assert visitor.page.evaluate("() => window.owned === undefined")
        assert visitor.page.locator("img[src=x]").count() == 0
    assert len(site.fake.started) == started and site.jobs.queue_length() == 0


def test_viewer_cannot_stop_or_delete(site: Site, visit: Callable[..., Visitor]) -> None:
    holder = visit().open(site.url).ask()
    site.fake.step(2)
    holder.has_cells(5, 1)
    other = visit().open(holder.page.url)
    other.has_cells(5, 1)
    button = other.page.locator("[data-act=stop]")
    expect(button).to_be_hidden()
    button.evaluate("node => { node.hidden = false; node.click(); }")  # what an own script could do
    expect(other.page.get_by_role("alert")).to_contain_text("只有提交者")
    watched = httpx.get(f"{site.url}watch/nothing").text
    assert json.loads(watched.split("data: ")[1]) == {"gone": "nothing"}
    key = other.page.evaluate("() => JSON.stringify(localStorage)")
    mine = holder.page.evaluate("() => JSON.stringify(localStorage)")
    assert holder.job() not in mine and key != mine
    for name in ("stop_video", "delete_video"):
        for secret in (holder.job(), "", new_key()):
            said = call(site.url, name, holder.job(), secret)
            assert "event: error" in said and "event: complete" not in said
    assert site.jobs.state(holder.job()).active
    site.fake.step(2)
    holder.has_cells(5, 2)


def call(url: str, name: str, *values: object) -> str:
    started = httpx.post(f"{url}gradio_api/call/{name}", json={"data": values}, timeout=60)
    return httpx.get(f"{url}gradio_api/call/{name}/{started.json()['event_id']}", timeout=60).text


def test_public_routes_reveal_no_job(site: Site) -> None:
    site.fake.open()
    key = new_key()
    job = site.jobs.submit(VideoRequest(PANDA, seed=1, num_frames=5, superres=False), key).id
    data = site.jobs.results.parent
    with httpx.Client(base_url=site.url, timeout=60, follow_redirects=True) as client:
        for path in (
            *("", "config", "gradio_api/info", "gradio_api/openapi.json", "gradio_api/startup-events", "alive"),
            *("watch/", "watch", "media/", "media", "gallery/", "monitoring", "monitoring/summary", "gradio_api/runs"),
            *("gradio_api/run-history/records", "gradio_api/run-history/buckets", "robots.txt", "manifest.json"),
        ):
            answer = client.get(path)
            assert job not in answer.text and key not in answer.text and PANDA + "1" not in answer.text
        for path in (
            *("monitoring", "monitoring/summary", "gradio_api/runs", "gradio_api/run-history/records"),
            f"gradio_api/file={data}/jobs.sqlite",
            f"gradio_api/file={data}/results/{job}/final.mp4",
            f"gradio_api/file={quote(str(data), safe='')}%2Fjobs.sqlite",
            "gradio_api/file=app.py",
            "gradio_api/file=/etc/passwd",
            "gradio_api/proxy=https://example.com/",
            f"media/{job[:-1]}/final.mp4",
            f"media/{job}/frames.npz%00.webp",
            f"media/{job}/..%2F..%2Fjobs.sqlite",
            f"media/..%2Fresults%2F{job}/final.mp4",
            "gallery/..%2f..%2fapp.py",
            "qr?link=javascript:alert(1)",
        ):
            assert client.get(path).status_code >= 400, path


def test_media_types_are_fixed(site: Site, visit: Callable[..., Visitor]) -> None:
    site.fake.open()
    visitor = visit().open(site.url).ask()
    visitor.has_state("done")
    expect(visitor.film()).to_have_attribute("src", re.compile("final.mp4$"))
    for name, kind in (("final.mp4", "video/mp4"), ("key-0.webp", "image/webp"), ("frames.zip", "application/zip")):
        answer = httpx.get(f"{site.url}media/{visitor.job()}/{name}", timeout=60)
        assert answer.headers["content-type"].startswith(kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "immutable" in answer.headers["cache-control"]
    named = httpx.get(f"{site.url}media/{visitor.job()}/final.mp4?download", timeout=60)
    assert named.headers["content-disposition"] == 'attachment; filename="cogvideo.mp4"'
