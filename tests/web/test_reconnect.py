"""Jobs that are never lost: reload at each stage, another device, a closed tab, no network; and never two at once."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
from playwright.sync_api import Route

from cogvideo.events import Event
from cogvideo.jobs.service import new_key
from cogvideo.request import VideoRequest
from tests.support.browsing import PANDA, PATIENCE, PHONE, Site, Visitor, expect, no_timer_from


def picture(visitor: Visitor) -> dict[str, Any]:
    """What a person sees of the job."""
    return visitor.page.evaluate(
        """() => ({
            what: document.querySelector('.cv-what').textContent,
            title: document.title,
            percent: document.querySelector('.cv-bar').ariaValueNow,
            tokens: document.querySelector('.cv-tokens').textContent,
            wish: document.querySelector('.cv-wish').textContent,
            cells: [...document.querySelectorAll('.cv-cells > div')].map(cell => cell.dataset.state),
            film: document.querySelector('.cv-film:not([hidden])')?.getAttribute('src') || '',
            job: location.search,
            acts: [...document.querySelectorAll('.cv-acts [data-act]:not([hidden])')].map(node => node.dataset.act),
        })"""
    )


def reload(visitor: Visitor, watched: list[str]) -> None:
    """Reloads; the same picture comes back, by one connection where the job is active and by none where it is not."""
    before = picture(visitor)
    state = visitor.page.locator(".cv-screen").get_attribute("data-state")
    watched.clear()
    visitor.page.reload()
    visitor.has_state(state or "")
    expect(visitor.page.locator(".cv-what")).to_have_text(before["what"])
    if before["film"]:
        expect(visitor.film()).to_have_attribute("src", before["film"])
    assert picture(visitor) == before
    assert len(watched) == (1 if state in ("queued", "running") else 0)


def test_reload_restores_page_at_every_stage(site: Site, visit: Callable[..., Visitor]) -> None:
    key = new_key()
    blocker = site.jobs.submit(VideoRequest("占位", seed=1, num_frames=5, superres=False), key).id
    visitor = visit()
    visitor.page.add_init_script(no_timer_from(1000))  # on a busy machine a stream is opened anew after a silence
    visitor.open(site.url)
    watched: list[str] = []
    visitor.page.on("request", lambda request: "/watch/" in request.url and watched.append(request.url))
    visitor.choose("#cv-rate", "2 帧/秒")
    visitor.ask()
    visitor.has_state("queued")
    expect(visitor.page.locator(".cv-what")).to_have_text("排队中，前面还有 1 段")
    reload(visitor, watched)
    job, started = visitor.job(), len(site.fake.started)
    site.jobs.stop(blocker, key)
    visitor.has_state("running")
    reload(visitor, watched)
    site.fake.step(3)  # a keyframe and a half
    expect(visitor.page.locator(".cv-cells > div[data-state=painting]")).to_have_count(1)
    expect(visitor.page.locator(".cv-cells > div[data-state=done]")).to_have_count(1)
    expect(visitor.page.locator(".cv-tokens")).to_contain_text("96 /")
    reload(visitor, watched)
    site.fake.step(7)  # all keyframes
    expect(visitor.film()).to_have_attribute("src", re.compile("level-0.mp4$"))
    reload(visitor, watched)
    site.fake.step()  # the in-betweens; super-resolution waits
    expect(visitor.film()).to_have_attribute("src", re.compile("level-1.mp4$"))
    reload(visitor, watched)
    site.fake.step()
    visitor.has_state("done")
    expect(visitor.film()).to_have_attribute("src", re.compile("final.mp4$"))
    reload(visitor, watched)
    assert len(site.fake.started) == started + 1 and visitor.job() == job
    kinds = [logged.entry.kind for logged in site.jobs.log(job)]
    assert kinds == ["queued", "running", *["keyframe"] * 5, "level", "level", "done"]


def test_page_finds_the_job_with_the_first_answers_after_reconnect(site: Site, visit: Callable[..., Visitor]) -> None:
    """By a reload, and on another device by the link: no timer is waited for, and the job is requested once."""
    visitor, phone = visit(), visit(viewport=PHONE, has_touch=True)
    asked: list[str] = []
    for each in (visitor, phone):
        each.page.add_init_script(no_timer_from(1000))
        each.page.on("request", lambda request: re.search("/(watch|now)/", request.url) and asked.append(request.url))
    visitor.open(site.url).ask()
    site.fake.step(2)
    visitor.has_cells(5, 1)
    started, link = len(site.fake.started), visitor.page.url
    for each, come in ((visitor, visitor.page.reload), (phone, lambda: phone.page.goto(link))):
        asked.clear()
        come()
        each.has_state("running")
        each.has_cells(5, 1)
        assert len(asked) == 1 and "/watch/" in asked[0]
    assert len(site.fake.started) == started


HIDDEN = "Object.defineProperty(document, 'hidden', { get: () => !window.back, configurable: true });"


def test_hidden_tabs_release_their_connection(site: Site, visit: Callable[..., Visitor]) -> None:
    """Browsers allow six connections to a host: seven tabs that keep one each would leave none."""
    front = visit().open(site.url).ask()
    site.fake.step(2)
    front.has_cells(5, 1)
    context = front.page.context
    streams: list[str] = []
    tabs = []
    for _ in range(7):
        page = context.new_page()
        page.on("request", lambda request: "/watch/" in request.url and streams.append(request.url))
        page.add_init_script(HIDDEN)
        tabs.append(Visitor(page).open(front.page.url))
        tabs[-1].has_cells(5, 1)
    assert streams == []
    last = Visitor(context.new_page()).open(front.page.url)
    site.fake.step(2)
    last.has_cells(5, 2)
    tabs[0].has_cells(5, 2)  # it asks now and then
    tabs[1].page.evaluate("() => { window.back = true; document.dispatchEvent(new Event('visibilitychange')); }")
    tabs[1].has_cells(5, 2)
    assert len(streams) == 1
    site.fake.open()
    for visitor in (front, last, *tabs):
        visitor.has_state("done")
        assert visitor.complaints == []


def test_job_continues_after_tab_closes(site: Site, visit: Callable[..., Visitor]) -> None:
    holder = visit().open(site.url).ask()
    site.fake.step(2)
    holder.has_cells(5, 1)
    phone = visit(viewport=PHONE, has_touch=True).open(holder.page.url)
    phone.has_cells(5, 1)
    started = len(site.fake.started)
    context = holder.page.context
    holder.page.close()
    site.fake.step(2)
    phone.has_cells(5, 2)
    back = Visitor(context.new_page()).open(site.url)  # no job in the address: the browser remembers who it is
    back.has_cells(5, 2)
    back.page.locator("[data-act=stop]").click()
    back.has_state("stopped")
    phone.has_state("stopped")
    assert len(site.fake.started) == started and back.complaints == []


@pytest.mark.parametrize("status", [None, 502])
def test_lost_network_is_shown_and_recovered(site: Site, visit: Callable[..., Visitor], status: int | None) -> None:
    """No answer at all, or a proxy's error page, after which a browser's event source gives up by itself."""
    visitor = visit().open(site.url)
    visitor.forgiven = True
    page = visitor.page
    page.evaluate("() => { window.stayed = true; }")
    page.route("**/watch/**", lambda route: route.fulfill(status=status) if status else route.abort())
    visitor.ask()
    expect(page.locator(".cv-what")).to_contain_text("连接中断")
    site.fake.step(6)
    page.unroute("**/watch/**")
    visitor.has_cells(5, 3)
    expect(page.locator(".cv-what")).to_have_text("正在画第 4 个关键帧，共 5 个")
    assert page.evaluate("() => window.stayed")


def test_second_job_starts_after_first_ends(
    site: Site, visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stops; as long as A's pipeline holds the accelerator, B may not begin, whatever B's page or A's page does."""
    log: list[tuple[str, int]] = []
    let_go = threading.Event()
    stream = site.fake.stream

    def lingering(request: VideoRequest, stop: Callable[[], bool] | None = None) -> Generator[Event, None, None]:
        log.append(("begin", request.seed))
        try:
            yield from stream(request, stop)
        finally:
            if request.seed == first:
                assert let_go.wait(PATIENCE / 1000)
            log.append(("end", request.seed))

    monkeypatch.setattr(site.fake, "stream", lingering)
    one, two = visit().open(site.url), visit(locale="en-US").open(site.url)
    first = int(one.page.locator("#cv-seed input").input_value())
    one.page.locator("#cv-fresh input").uncheck()
    one.ask()
    one.has_state("running")
    site.fake.step(2)
    one.has_cells(5, 1)
    two.ask("一只小猫")
    two.has_state("queued")
    one.page.locator("[data-act=stop]").click()
    expect(one.page.locator(".cv-what")).to_have_text("正在停止…")
    one.page.reload()
    two.page.reload()
    two.has_state("queued")
    expect(two.page.locator(".cv-what")).to_have_text("Waiting; 1 before this one")
    assert log == [("begin", first)]
    let_go.set()
    one.has_state("stopped")
    two.has_state("running")
    site.fake.open()
    two.has_state("done")
    second = site.jobs.state(two.job()).request.seed
    assert log == [("begin", first), ("end", first), ("begin", second), ("end", second)]
    assert site.fake.most_busy == 1


def test_lost_stop_request_can_be_repeated(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit().open(site.url).ask()
    site.fake.step(2)
    visitor.has_cells(5, 1)
    page = visitor.page
    stop = page.locator("[data-act=stop]")
    lost: list[Route] = []  # on its way for ever
    page.route("**/run/predict*", lambda route: route.continue_() if lost else lost.append(route))
    stop.click()
    expect(stop).to_be_disabled()
    expect(page.locator(".cv-what")).to_have_text("正在停止…")
    expect(stop).to_be_enabled()
    expect(page.locator(".cv-what")).to_have_text("正在画第 2 个关键帧，共 5 个")
    stop.click()
    visitor.has_state("stopped")


def test_failed_video_request_is_retried(site: Site, visit: Callable[..., Visitor]) -> None:
    site.fake.open()
    job = site.jobs.submit(VideoRequest(PANDA, seed=1, num_frames=5, superres=False), new_key()).id
    visitor = visit()
    visitor.forgiven = True
    page, film = visitor.page, visitor.film()
    page.clock.install()
    page.route("**/final.mp4", lambda route: route.abort())
    visitor.open(f"{site.url}?job={job}").has_state("done")
    expect(page.locator(".cv-empty")).to_have_text("")
    page.unroute("**/final.mp4")
    page.clock.fast_forward(5000)
    expect(film).to_have_attribute("src", re.compile("final.mp4$"))
    page.route("**/final.mp4", lambda route: route.abort())
    page.reload()
    for _ in range(3):
        with page.expect_request("**/final.mp4"):
            page.clock.fast_forward(5000)
    expect(page.locator(".cv-empty")).to_contain_text("没有载入")
    expect(film).to_have_count(0)


def test_history_updates_itself(site: Site, visit: Callable[..., Visitor]) -> None:
    """Also of what is not on the stage."""
    visitor = visit()
    visitor.page.clock.install()
    visitor.open(site.url).ask("一只小猫")
    visitor.has_state("running")
    visitor.ask("一只小狗")
    cards = visitor.page.locator("[data-shelf=history] .cv-card")
    expect(cards).to_have_count(2)
    expect(cards.nth(1)).to_contain_text("进行中")
    site.fake.step(14)  # all of the first one
    visitor.has_state("running")
    visitor.page.clock.fast_forward(5000)
    expect(cards.nth(1)).to_contain_text("完成")
    expect(cards.nth(0)).to_contain_text("进行中")
    for count in (3, 4):
        visitor.ask("一只小鸡")
        expect(cards).to_have_count(count)
    visitor.ask("一只小鸭")  # one runs and two wait
    expect(visitor.page.get_by_role("alert")).to_contain_text("您已有 3 个任务在生成或排队，上限为 3 个")
