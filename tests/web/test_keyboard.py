"""Without a mouse and without eyes: every step by keyboard, each change said once, progress in the tab's title."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Page

from tests.support.browsing import PANDA, Site, Visitor, expect

SAID = """() => {
    window.said = [];
    const live = document.querySelector('.cv-live');
    const note = () => live.textContent && live.textContent !== said.at(-1) && said.push(live.textContent);
    window.titles = [document.title];
    new MutationObserver(note).observe(live, { childList: true, characterData: true, subtree: true });
    new MutationObserver(() => titles.push(document.title))
        .observe(document.querySelector('title'), { childList: true, characterData: true, subtree: true });
}"""
OUTLINED = """() => {
    const focused = document.activeElement;
    const shown = node => {
        const style = getComputedStyle(node);
        return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 || style.boxShadow !== 'none';
    };
    for (let node = focused, level = 0; node && level < 3; node = node.parentElement, level++)
        if (shown(node)) return '';
    return focused.outerHTML.slice(0, 200);
}"""


def tab_to(page: Page, selector: str, backwards: bool = False) -> None:
    """Presses Tab until `selector` has the focus; on the way one can always see where it is."""
    for _ in range(80):
        page.keyboard.press("Shift+Tab" if backwards else "Tab")
        if page.evaluate("() => document.activeElement !== document.body"):
            assert page.evaluate(OUTLINED) == ""
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab never leads to {selector}")


def test_video_can_be_made_and_shared_by_keyboard(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit().open(site.url)
    page = visitor.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab_to(page, "#cv-language input")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#cv-make")).to_have_text("Make the video")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#cv-make")).to_have_text("生成视频")
    tab_to(page, "#cv-prompt textarea")
    page.keyboard.insert_text(PANDA)
    tab_to(page, "#cv-make")
    page.keyboard.press("Enter")
    visitor.has_state("running")
    site.fake.step(2)
    visitor.has_cells(5, 1)
    tab_to(page, "[data-act=stop]")
    page.keyboard.press("Enter")
    visitor.has_state("stopped")
    expect(visitor.film()).to_have_attribute("src", re.compile("kept.mp4$"))
    tab_to(page, "[data-act=share]")
    page.keyboard.press("Space")
    link = page.locator(".cv-link")
    expect(link).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == link.input_value()
    assert f"job={visitor.job()}" in link.input_value()
    tab_to(page, "[data-shelf=history] [data-act=delete]")
    page.keyboard.press("Enter")
    expect(page.locator("[data-shelf=history] [data-act=delete]")).to_be_focused()  # asks first, and stays there
    page.keyboard.press("Enter")
    expect(page.locator("[data-shelf=history] .cv-card")).to_have_count(0)


def test_filmstrip_moves_with_arrow_keys(site: Site, visit: Callable[..., Visitor]) -> None:
    site.fake.open()
    visitor = visit(reduced_motion="reduce").open(site.url)
    visitor.choose("#cv-rate", "2 帧/秒")
    visitor.ask()
    visitor.has_state("done")
    strip = visitor.page.locator(".cv-strip")
    expect(strip).to_have_attribute("aria-disabled", "false")
    expect(strip).to_have_attribute("aria-valuemax", "9")
    expect(visitor.film()).to_have_attribute("src", re.compile("final.mp4$"))
    strip.focus()
    for key, frame in (("Home", 1), ("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("End", 9)):
        visitor.page.keyboard.press(key)
        expect(strip).to_have_attribute("aria-valuenow", str(frame))
    expect(strip).to_have_attribute("aria-valuetext", "第 9 帧，共 9 帧")


def test_changes_are_announced_once_and_title_shows_percent(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit().open(site.url)
    page = visitor.page
    visitor.choose("#cv-rate", "2 帧/秒")
    page.evaluate(SAID)
    visitor.ask()
    visitor.has_state("running")
    for count in range(1, 6):
        site.fake.step()
        expect(page.locator(".cv-what")).to_have_text(f"正在画第 {count} 个关键帧，共 5 个")
        site.fake.step()
        visitor.has_cells(5, count)
    site.fake.step()
    visitor.has_cells(9, 9)
    site.fake.open()
    visitor.has_state("done")
    said = page.evaluate("() => said")
    stages = [f"正在画第 {index} 个关键帧，共 5 个" for index in range(1, 6)]
    assert [words for words in said if words in stages] == stages
    assert said[-1] == "完成" and len(set(said)) == len(said)
    assert len(said) <= 11  # stages, never percentages
    titles = page.evaluate("() => titles")
    percent = [int(found[1]) for title in titles if (found := re.match(r"(\d+)% · ", title))]
    assert percent == sorted(percent) and {0, 33} <= set(percent)
    assert titles[-1] == titles[0] == "CogVideo · 人人可用"
    assert page.locator(".cv-live").get_attribute("aria-live") == "polite"


def test_background_tab_title_marks_finished_job(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit().open(site.url).ask()
    visitor.has_state("running")
    visitor.page.evaluate(
        """() => {
            Object.defineProperty(document, 'hidden', { get: () => !window.back, configurable: true });
            document.dispatchEvent(new Event('visibilitychange'));
        }"""
    )
    site.fake.open()
    expect(visitor.page).to_have_title("✓ CogVideo · 人人可用")
    visitor.page.evaluate("() => { window.back = true; document.dispatchEvent(new Event('visibilitychange')); }")
    expect(visitor.page).to_have_title("CogVideo · 人人可用")
