"""The page, in a browser: drafts to choose from, first frames, what follows from a clip, models, codes, a root path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from cogvideo.config import PRESETS
from cogvideo.errors import OutOfMemoryError
from cogvideo.jobs.model_registry import ModelEntry
from cogvideo.jobs.queue import Limits
from cogvideo.jobs.service import JobService, new_key
from cogvideo.media.video import VideoWriter
from cogvideo.request import VideoRequest
from cogvideo.token_frames import last_frame
from cogvideo.web import server
from tests.support.browsing import DESKTOP, PANDA, PHONE, Site, Visitor
from tests.support.fakes import PRESET, FakePipeline
from tests.support.ports import free_port
from tests.support.proxy import below

Visit = Callable[..., Visitor]
NEEDS = ("还要下载 43 GB", "Another 43 GB to fetch")


def finish(site: Site, request: VideoRequest, visitor: Visitor) -> str:
    """A finished job of somebody else's on the visitor's screen."""
    site.fake.open()
    job = site.jobs.submit(request, new_key()).id
    visitor.open(f"{site.url}?job={job}")
    visitor.has_state("done")
    return job


@pytest.mark.parametrize(("viewport", "locale"), [(DESKTOP, "zh-CN"), (PHONE, "en-US")])
def test_page_finishes_chosen_drafts(site: Site, visit: Visit, viewport: dict[str, int], locale: str) -> None:
    visitor = visit(viewport=viewport, locale=locale).open(site.url)
    page = visitor.page
    page.locator("#cv-prompt textarea").fill(PANDA)
    page.locator("#cv-drafts").click()
    visitor.has_state("running")
    site.fake.step(3)
    expect(page.locator(".cv-drafts b[data-state=done]")).to_have_count(4)
    expect(page.locator(".cv-drafts b[data-state=painting]")).to_have_count(4)
    expect(page.locator(".cv-quad img:visible")).to_have_count(4)
    expect(page.locator(".cv-strip")).to_be_hidden()
    expect(page.locator(".cv-drafts input").first).to_be_disabled()
    page.reload()
    expect(page.locator(".cv-drafts b[data-state=done]")).to_have_count(4)
    site.fake.open()
    visitor.has_state("done")
    draft, seed = visitor.job(), site.jobs.state(visitor.job()).request.seed
    expect(page.locator(".cv-meta")).to_contain_text(str(seed))
    expect(page.locator(".cv-drafts b[data-state=done]")).to_have_count(20)
    expect(page.locator("[data-act=finish]")).to_be_disabled()
    small = page.locator(".cv-drafts label").evaluate_all(
        "rows => rows.map(row => row.offsetHeight).filter(height => height < 44)"
    )
    assert small == [] and page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    found = Axe().run(page).response["violations"]
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
    for box in (1, 3):
        page.locator(".cv-drafts input").nth(box).check()
    page.locator("[data-act=finish]").click()
    expect(page.locator("[data-shelf=history] .cv-card")).to_have_count(3)
    visitor.has_cells(33, 33)
    visitor.has_state("done")
    assert site.jobs.state(visitor.job()).request.seed == (seed + 1) % 2**32
    chosen = [request.initial_tokens for request in site.fake.started if request.initial_tokens]
    assert chosen[-2:] == [site.jobs.tokens(draft, 1), site.jobs.tokens(draft, 3)] or len(chosen) == 1


def test_continue_starts_with_last_frame(site: Site, visit: Visit) -> None:
    visitor = visit()
    job = finish(site, VideoRequest(PANDA, seed=3, num_frames=9, superres=False), visitor)
    page = visitor.page
    page.locator("[data-act=go_on]").click()
    expect(page.locator(".cv-begin img")).to_have_count(1)
    expect(page.locator("#cv-notice")).to_contain_text("第一帧已选好")
    expect(page.locator("#cv-prompt textarea")).to_be_focused()
    visitor.ask("一只熊猫在草地上跳")
    expect(page.locator("[data-shelf=history] .cv-card")).to_have_count(1)
    visitor.has_state("done")
    assert visitor.job() != job
    assert site.fake.started[-1].first_frame == last_frame(site.jobs.tokens(job))
    page.reload()  # the job's own first frame is shown again
    expect(page.locator(".cv-begin img")).to_have_count(1)
    page.locator(".cv-begin button").click()
    expect(page.locator(".cv-begin img")).to_have_count(0)
    visitor.ask("一只小猫")
    expect(page.locator("[data-shelf=history] .cv-card")).to_have_count(2)
    visitor.has_state("done")
    assert site.fake.started[-1].first_frame is None


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE])
def test_uploaded_image_becomes_first_frame(site: Site, visit: Visit, tmp_path: Path, viewport: dict[str, int]) -> None:
    Image.new("RGB", (300, 120), (60, 60, 60)).save(tmp_path / "picture.png")
    (tmp_path / "broken.png").write_text("<script>alert(1)</script>")
    site.fake.open()
    visitor = visit(locale="en-US", viewport=viewport).open(site.url)
    page = visitor.page
    page.get_by_role("button", name="Start from a picture").click()
    page.locator("#cv-picture input[type=file]").set_input_files(tmp_path / "broken.png")
    expect(page.get_by_role("alert")).to_contain_text("cannot be read as an image")
    page.locator("#cv-picture input[type=file]").set_input_files(tmp_path / "picture.png")
    expect(page.locator(".cv-begin figcaption")).to_have_text(["Your picture", "The first frame as the model sees it"])
    seen = (
        page.locator(".cv-begin img")
        .nth(1)
        .evaluate(
            """async image => {
            await image.decode();
            const canvas = document.createElement('canvas');
            canvas.getContext('2d').drawImage(image, 0, 0);
            return [image.naturalWidth, ...canvas.getContext('2d').getImageData(0, 0, 1, 1).data];
        }"""
        )
    )
    assert seen == [64, 60, 60, 60, 255]
    visitor.ask()
    visitor.has_state("done")
    first = site.fake.started[-1].first_frame
    assert first is not None and first.rows() == [[60] * 64]


def test_page_resamples_upscales_and_resumes(site: Site, visit: Visit) -> None:
    visitor = visit()
    job = finish(site, VideoRequest(PANDA, seed=3, num_frames=17, superres=False), visitor)
    page = visitor.page
    for act, frames in (("between", 5), ("enlarge", 17)):
        page.goto(f"{site.url}?job={job}")
        page.locator(f"[data-act={act}]").click()
        expect(page.locator("[data-shelf=history] .cv-card")).to_have_count(1 if act == "between" else 2)
        visitor.has_state("done")
        request = site.fake.started[-1]
        assert request.initial_tokens is not None and request.initial_tokens.num_frames == frames
        assert (request.interpolation_seed is not None, request.superres) == (act == "between", act == "enlarge")
        page.get_by_role("button", name="更多设置").click()
        shown = page.locator("#cv-between input, #cv-between textarea")
        expect(shown).to_have_value("" if request.interpolation_seed is None else str(request.interpolation_seed))
    site.fake.reset()
    visitor.ask()
    site.fake.step(11)
    visitor.has_cells(9, 9)
    page.locator("[data-act=stop]").click()
    visitor.has_state("stopped")
    page.locator("[data-act=resume]").click()
    visitor.has_cells(9, 9)
    visitor.has_state("running")
    site.fake.open()
    visitor.has_state("done")
    visitor.has_cells(17, 17)


def test_share_shows_qr_code_and_uses_phone_dialog(site: Site, visit: Visit) -> None:
    visitor = visit()
    job = finish(site, VideoRequest(PANDA, seed=3, num_frames=5, superres=False), visitor)
    page = visitor.page
    page.locator("[data-act=share]").click()
    expect(page.locator(".cv-qr")).to_be_visible()
    assert page.locator(".cv-qr").evaluate("async image => (await image.decode(), image.naturalWidth)") > 80
    assert f"job%3D{job}" in (page.locator(".cv-qr").get_attribute("src") or "")
    page.keyboard.press("Escape")
    expect(page.locator(".cv-share")).to_be_hidden()
    expect(page.locator("[data-act=share]")).to_be_focused()
    phone = visit(viewport=PHONE, has_touch=True, is_mobile=True)
    phone.page.add_init_script("navigator.share = async (what) => { window.shared = what; };")
    phone.open(f"{site.url}?job={job}").has_state("done")
    phone.page.locator("[data-act=share]").click()
    phone.page.wait_for_function("window.shared")
    shared = phone.page.evaluate("window.shared")
    assert shared["text"] == PANDA and f"job={job}" in shared["url"] and "s=3" in shared["url"]
    expect(phone.page.locator(".cv-share")).to_be_hidden()


def test_tab_title_shows_queue_position(site: Site, visit: Visit) -> None:
    first, second = visit().open(site.url).ask(), visit(locale="en-US")
    first.has_state("running")
    second.open(site.url)
    expect(second.page.locator("#cv-outcome")).to_contain_text("running or waiting on this server: 1.")
    second.ask("一只小猫").has_state("queued")
    expect(second.page).to_have_title("(1) CogVideo for everyone")


def test_out_of_memory_offers_smaller_preset(site: Site, visit: Visit) -> None:
    site.fake.fail = OutOfMemoryError("显存不足", "Out of memory", "16g")
    visitor = visit().open(site.url).ask()
    site.fake.step(2)
    visitor.has_state("failed")
    page = visitor.page
    expect(page.locator(".cv-note")).to_contain_text("显存不足")
    seed = site.fake.started[-1].seed
    site.fake.fail = None
    site.fake.open()
    page.get_by_role("button", name="用“16g”内存预设再试（同样的种子）").click()
    visitor.has_state("done")
    assert site.fake.started[-1].seed == seed
    assert site.jobs.state(visitor.job()).memory == "16g"


# --- several models, and below a path -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server below /video that has a second model and lacks a third."""
    own, other = FakePipeline(free=True), FakePipeline(free=True)
    offers = [
        ModelEntry(replace(PRESET, name="large", upscale_by_default=False), lambda _: other, lambda: None),
        ModelEntry(replace(PRESET, name="huge"), lambda _: other, lambda: NEEDS),
        ModelEntry(replace(PRESETS["cogvideo"], name="vast", upscale_by_default=False), lambda _: other, lambda: None),
    ]
    folder = tmp_path_factory.mktemp("two")
    jobs = JobService(folder, PRESET, lambda: own, VideoWriter, Limits(preview_seconds=0), offers)
    port, front = free_port(), free_port()
    ui = server.serve(jobs, "127.0.0.1", port, "/video")
    jobs.start()
    with below("/video", f"http://127.0.0.1:{port}/", front) as url:
        yield Site(url, jobs, other)
    ui.close()
    jobs.close()


def test_model_can_be_chosen_and_missing_one_shows_command(two: Site, visit: Visit) -> None:
    visitor = visit(locale="en-US").open(two.url)
    page = visitor.page
    page.get_by_role("button", name="More settings").click()
    superres = page.get_by_label("Super-resolution: three times the size")
    expect(superres).to_be_checked()
    visitor.choose("#cv-model", "huge (not here yet)")
    expect(page.locator("#cv-about")).to_contain_text("43 GB")
    visitor.ask()
    expect(page.get_by_role("alert")).to_contain_text("43 GB")
    visitor.choose("#cv-model", "large")
    expect(page.locator("#cv-about")).to_contain_text("64 by 64")
    expect(superres).not_to_be_checked()
    visitor.ask()
    visitor.has_state("done")
    assert two.jobs.state(visitor.job()).model == "large" and len(two.fake.started) == 1
    page.locator("[data-act=share]").click()
    link = page.locator(".cv-link").input_value()
    assert link.startswith(two.url) and "m=large" in link
    job = visitor.job()
    page.goto("about:blank")
    two.jobs.delete(job, _key_of(two, job))
    other = visit().open(link)
    expect(other.page.locator("#cv-notice")).to_contain_text("已不在服务器上")
    other.page.get_by_role("button", name="更多设置").click()
    expect(other.page.locator("#cv-model").get_by_label("large")).to_be_checked()


def test_memory_preset_of_large_model_can_be_chosen(two: Site, visit: Visit) -> None:
    visitor = visit(locale="en-US").open(two.url)
    page = visitor.page
    page.get_by_role("button", name="More settings").click()
    expect(page.locator("#cv-memory")).to_be_hidden()  # any machine has room for a small one
    visitor.choose("#cv-model", "vast")
    expect(page.locator("#cv-memory")).to_contain_text(re.compile(r"Automatic: cpu, about \d+\.\d GB"))
    page.locator("#cv-memory label", has_text="16g, about").click()
    visitor.ask()
    visitor.has_state("done")
    view = two.jobs.state(visitor.job())
    assert (view.model, view.memory) == ("vast", "16g")


def _key_of(site: Site, job: str) -> str:
    """Takes the job over, so that the test may delete it."""
    key = new_key()
    site.jobs._store._base.execute("UPDATE jobs SET owner = ? WHERE id = ?", (_owner(key), job))
    return key


def _owner(key: str) -> str:
    from cogvideo.jobs.service import owner_of

    return owner_of(key)


def test_page_works_below_root_path(two: Site, visit: Visit) -> None:
    visitor = visit(viewport=PHONE).open(two.url).ask()
    visitor.has_state("done")
    page = visitor.page
    expect(visitor.film()).to_have_js_property("videoWidth", 64)
    assert page.url == f"{two.url}?job={visitor.job()}"
    picture = page.locator("[data-shelf=history] .cv-picture").first
    expect(picture).to_have_attribute("style", re.compile(re.escape(f"{two.url}media/")))  # once the shelf is refreshed
    href = page.locator("[data-act=download]").get_attribute("href") or ""
    assert page.context.request.get(href).ok and re.match(re.escape(two.url) + "media/", href)
    page.reload()
    visitor.has_state("done")
    page.locator("[data-act=share]").click()
    expect(page.locator(".cv-qr")).to_be_visible()
    assert page.locator(".cv-qr").evaluate("async image => (await image.decode(), image.naturalWidth)") > 80


def test_fake_tokens_contain_seed_and_frame() -> None:
    """The fake's token clips say seed and moment, so that the tests above compare what was really kept."""
    from tests.support.fakes import token_clip

    tokens = token_clip(VideoRequest(PANDA, seed=7, num_drafts=2), 0)
    np.testing.assert_array_equal(tokens[:, :, 0], [[7, 807, 1607, 2407, 3207], [8, 808, 1608, 2408, 3208]])
