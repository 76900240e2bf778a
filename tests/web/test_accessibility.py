"""For every eye and hand: accessibility in each state, thumbs, narrow screens, calm, few bytes."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Route

from cogvideo.errors import OutOfMemoryError
from cogvideo.jobs.log_entries import Interrupted
from cogvideo.jobs.service import new_key
from cogvideo.request import VideoRequest
from scripts.docs.make_pictures import smaller, take
from tests.support.browsing import DESKTOP, PANDA, PHONE, Site, Visitor, expect

NARROW = {"width": 360, "height": 740}
BARRIERS = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
SMALL = """() => {
    const parts = 'button, a[href], input:not([type=file]), textarea, select, video[tabindex], [role=button], '
        + '[role=slider], fieldset label, summary';
    const target = node => {  // a label is part of what one can hit
        const label = node.closest('label');
        return label && ['radio', 'checkbox'].includes(node.type) ? label : node;
    };
    return [...document.querySelectorAll(parts)]
        .filter(node => node.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
        .map(node => [node, target(node).getBoundingClientRect()])
        .filter(([node, box]) => box.width > 1 && box.height > 1 && (box.height < 43.9 || box.width < 24))
        .map(([node, box]) => `${node.outerHTML.slice(0, 120)} ${box.width}x${box.height}`);
}"""
WIDE = """() => [...document.querySelectorAll('body *')]
    .filter(node => node.getBoundingClientRect().right > innerWidth + 1 && !node.closest('.cv-chips, .cv-reading'))
    .map(node => node.outerHTML.slice(0, 120)).slice(0, 5)"""


def serious(visitor: Visitor) -> list[str]:
    found = Axe().run(visitor.page, options=BARRIERS).response["violations"]
    return [
        f"{each['id']}: {node['html'][:200]} {node.get('failureSummary', '')[:200]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


LOOKS: dict[str, dict[str, Any]] = {
    "desktop light zh": {"viewport": DESKTOP, "color_scheme": "light", "locale": "zh-CN"},
    "phone dark zh": {"viewport": PHONE, "color_scheme": "dark", "locale": "zh-CN", "has_touch": True},
    "narrow light en": {"viewport": NARROW, "color_scheme": "light", "locale": "en-US", "has_touch": True},
    "desktop dark en": {"viewport": DESKTOP, "color_scheme": "dark", "locale": "en-US"},
}


@pytest.mark.parametrize("look", LOOKS)
def test_page_states_have_no_accessibility_violations(site: Site, visit: Callable[..., Visitor], look: str) -> None:
    """Each state in each look: nothing serious for axe, nothing too small for a thumb, nothing beside the screen."""
    visitor = visit(**LOOKS[look], reduced_motion="reduce").open(site.url)
    page = visitor.page
    phone = LOOKS[look].get("has_touch", False)

    def fits(state: str) -> None:
        assert serious(visitor) == [], state
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, page.evaluate(WIDE)
        if phone:
            assert page.evaluate(SMALL) == [], state

    dark = page.evaluate("() => document.body.classList.contains('dark')")
    assert dark == (LOOKS[look]["color_scheme"] == "dark")
    visitor.ask("a panda")
    expect(page.get_by_role("alert")).to_be_visible()
    for part in page.locator(".label-wrap").all():
        part.click()
    fits("empty, an error, everything open")
    for part in page.locator(".label-wrap").all():
        part.click()
    visitor.ask("熊猫" * 40 + "x" * 60)
    site.fake.step(3)
    expect(page.locator(".cv-cells > div[data-state=painting]")).to_have_count(1)
    fits("running")
    page.locator("[data-act=stop]").click()
    visitor.has_state("stopped")
    fits("stopped")
    site.fake.open()
    page.locator("[data-act=again]").click()
    visitor.has_state("done")
    expect(page.locator("[data-act=share]")).to_be_visible()
    page.locator("[data-act=share]").click()
    expect(page.locator(".cv-link")).to_be_visible()
    fits("done, with the link")
    assert visitor.film().evaluate("film => film.paused")  # little motion: nothing plays by itself
    assert page.evaluate("() => document.getAnimations().filter(each => each.playState === 'running').length") == 0


@pytest.mark.parametrize("look", ["desktop light zh", "phone dark zh"])
def test_error_and_queue_states_have_no_accessibility_violations(
    site: Site, visit: Callable[..., Visitor], look: str
) -> None:
    """Waiting, failed, interrupted; drafts being drawn and chosen."""
    visitor = visit(**LOOKS[look], reduced_motion="reduce").open(site.url)
    page = visitor.page
    key = new_key()
    blocker = site.jobs.submit(VideoRequest("占位", seed=1, num_frames=5, superres=False), key).id

    def fits(state: str) -> None:
        assert serious(visitor) == [], state
        assert page.evaluate("() => document.documentElement.scrollWidth - innerWidth") <= 0, page.evaluate(WIDE)
        if LOOKS[look].get("has_touch"):
            assert page.evaluate(SMALL) == [], state

    visitor.ask()
    visitor.has_state("queued")
    fits("queued")
    site.fake.fail = OutOfMemoryError("内存不足", "Out of memory", "16g")
    site.jobs.stop(blocker, key)
    visitor.has_state("running")
    site.fake.step(2)
    visitor.has_state("failed")
    expect(page.locator("[data-act=smaller]")).to_be_visible()
    fits("failed")
    site.fake.fail = None
    page.locator("#cv-drafts").click()
    visitor.has_state("running")
    site.fake.step(3)
    expect(page.locator(".cv-drafts b[data-state=painting]")).to_have_count(4)
    fits("drafts being drawn")
    site.fake.open()
    visitor.has_state("done")
    page.locator(".cv-drafts input").first.check()
    fits("drafts to choose from")
    site.jobs._store.finish(visitor.job(), time.time(), Interrupted(), 0)
    page.reload()
    visitor.has_state("interrupted")
    fits("interrupted")


def test_gallery_plays_only_in_view_and_not_with_reduced_motion(site: Site, visit: Callable[..., Visitor]) -> None:
    playing = "() => [...document.querySelectorAll('[data-shelf=gallery] video')].filter(clip => !clip.paused).length"
    calm = visit(reduced_motion="reduce").open(site.url)
    lively = visit().open(site.url)
    lively.page.locator("[data-shelf=gallery] video").first.scroll_into_view_if_needed()
    lively.page.wait_for_function(f"({playing})() > 0")
    calm.page.locator("[data-shelf=gallery] video").first.scroll_into_view_if_needed()
    assert calm.page.evaluate(playing) == 0
    clip = calm.page.locator("[data-shelf=gallery] video").first
    clip.focus()
    calm.page.keyboard.press("Enter")  # asked for, it plays
    calm.page.wait_for_function(f"({playing})() === 1")


def test_first_load_is_small_and_contacts_no_other_host(site: Site, visit: Callable[..., Visitor]) -> None:
    """Under 1 MB beyond Gradio's own files; whatever a visitor asked of another host fails every test (see `visit`)."""
    visitor = visit()
    ours: dict[str, int] = {}

    def weigh(route: Route) -> None:
        answer = route.fetch()
        ours[route.request.url.removeprefix(site.url)] = len(answer.body())
        route.fulfill(response=answer)

    streams = "gradio_api/(heartbeat|queue)|watch/"
    gradios = re.compile(rf"^{re.escape(site.url)}(?!assets/|static/|theme.css|{streams})")
    visitor.page.route(gradios, weigh)
    visitor.open(site.url)
    visitor.page.wait_for_load_state("load")
    expect(visitor.page.locator("[data-shelf=gallery] video").first).to_be_visible()
    assert "" in ours
    assert sum(ours.values()) < 1_000_000, ours
    fonts = visitor.page.evaluate("() => [...document.fonts].filter(font => font.status !== 'unloaded').length")
    assert fonts == 0  # system fonts alone
    visitor.page.unroute_all(behavior="ignoreErrors")  # what is still on its way needs no weighing


def test_readme_screenshots_can_be_regenerated(site: Site, browser: Browser) -> None:
    site.fake.open()
    picture = smaller(take(browser, site.url, "en-US", PANDA, 7))
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == (1920, 1350)
    assert len(picture) < 400_000
    assert site.fake.started[-1].seed == 7
