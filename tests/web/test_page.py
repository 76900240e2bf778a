"""The page in a real browser, with a pipeline that draws one step when a test says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Route

from cogvideo.jobs.service import new_key
from cogvideo.media.video import write_video
from cogvideo.request import VideoRequest
from cogvideo.web import job_json
from tests.support.browsing import PANDA, PHONE, Site, Visitor, expect, no_timer_from
from tests.support.fakes import moving_square


def test_page_shows_each_stage_of_a_job(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit().open(site.url)
    page = visitor.page
    expect(page).to_have_title("CogVideo · 人人可用")
    visitor.has_state("empty")
    visitor.choose("#cv-rate", "2 帧/秒")
    expect(page.locator("#cv-outcome")).to_contain_text("9 帧，共 4 秒")
    visitor.ask()
    visitor.has_state("running")
    height = page.locator(".cv-screen").bounding_box()
    for count in range(1, 6):
        site.fake.step()
        expect(page.locator(".cv-cells > div[data-state=painting]")).to_have_count(1)
        expect(page.locator(".cv-cells > div").nth(count - 1)).to_have_attribute("data-state", "painting")
        site.fake.step()
        visitor.has_cells(5, count)
    expect(visitor.film()).to_have_attribute("src", re.compile("level-0.mp4$"))
    expect(page).to_have_title(re.compile(r"^33% · "))
    first_length = visitor.film().evaluate("film => film.duration")
    expect(page.locator(".cv-what")).to_have_text("第 1 轮中间帧，共 1 轮")
    site.fake.step()
    expect(visitor.film()).to_have_attribute("src", re.compile("level-1.mp4$"))
    visitor.has_cells(9, 9)
    assert visitor.film().evaluate("film => film.duration") == pytest.approx(first_length, abs=0.05)
    site.fake.open()
    visitor.has_state("done")
    expect(visitor.film()).to_have_attribute("src", re.compile("final.mp4$"))
    expect(page.locator(".cv-what")).to_have_text("完成")
    expect(page.locator(".cv-tokens")).to_have_text("5,760 / 5,760 词元")
    expect(page.locator("[data-act=share]")).to_be_visible()
    assert visitor.film().evaluate("film => film.videoWidth") == 64
    assert page.locator(".cv-screen").bounding_box() == height  # nothing jumped
    expect(page.locator("[data-shelf=history] .cv-card")).to_have_count(1)


def test_stop_button_keeps_keyframes(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit(viewport=PHONE, locale="en-US").open(site.url).ask()
    site.fake.step(6)
    visitor.has_cells(5, 3)
    visitor.page.get_by_role("button", name="Stop", exact=True).click()
    visitor.has_state("stopped")
    expect(visitor.page.locator(".cv-what")).to_have_text("Stopped; what was drawn is kept")
    expect(visitor.film()).to_have_attribute("src", re.compile("kept.mp4$"))
    view = site.jobs.state(visitor.job())
    assert (view.status, view.num_frames) == ("stopped", 3)


def test_stop_without_stopping_state_is_shown_as_stopped(
    site: Site, visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = job_json.screen_value
    monkeypatch.setattr(job_json, "screen_value", lambda *args: {**shown(*args), "stopping": None})
    visitor = visit(locale="en-US")
    visitor.page.add_init_script(no_timer_from(4000))  # after four seconds anything is drawn anew
    visitor.open(site.url).ask()
    site.fake.step(6)
    visitor.has_cells(5, 3)
    visitor.page.get_by_role("button", name="Stop", exact=True).click()
    visitor.has_state("stopped")
    expect(visitor.page.locator(".cv-what")).to_have_text("Stopped; what was drawn is kept")


def test_stop_after_round_button_completes_round(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit().open(site.url).ask()
    site.fake.step(2)
    visitor.has_cells(5, 1)
    visitor.page.locator("[data-act=stop_level]").click()
    expect(visitor.page.locator(".cv-what")).to_have_text("这一轮画完就停")
    site.fake.open()
    visitor.has_state("stopped")
    visitor.has_cells(5, 5)


def test_shared_link_allows_watching_only(site: Site, visit: Callable[..., Visitor]) -> None:
    holder = visit().open(site.url).ask()
    site.fake.step(2)
    holder.has_cells(5, 1)
    other = visit(locale="en-US").open(holder.page.url)
    other.has_cells(5, 1)
    expect(other.page.locator(".cv-note")).to_have_text("You are watching somebody else's video.")
    expect(other.page.locator("[data-act=stop]")).to_be_hidden()
    expect(other.page.locator("[data-shelf=history] .cv-card")).to_have_count(0)
    site.fake.open()
    other.has_state("done")
    holder.has_state("done")


def test_settings_link_fills_form_without_starting(site: Site, visit: Callable[..., Visitor]) -> None:
    key = new_key()
    job = site.jobs.submit(VideoRequest(PANDA, seed=77, num_frames=9, duration=2.0, superres=False), key).id
    site.fake.open()
    holder = visit().open(f"{site.url}?job={job}")
    holder.has_state("done")
    link = holder.page.evaluate(
        "() => { document.querySelector('[data-act=share]').click(); return document.querySelector('.cv-link').value; }"
    )
    started = len(site.fake.started)
    holder.page.goto("about:blank")  # nobody is still being sent what is deleted now
    site.jobs.delete(job, key)
    visitor = visit().open(link)
    expect(visitor.page.locator("#cv-prompt textarea")).to_have_value(PANDA)
    expect(visitor.page.locator("#cv-seed input")).to_have_value("77")
    expect(visitor.page.locator("#cv-rate input:checked + span")).to_have_text("4 帧/秒")
    expect(visitor.page.locator("#cv-fresh input")).not_to_be_checked()
    expect(visitor.page.locator("#cv-notice")).to_contain_text("已不在服务器上")
    visitor.has_state("empty")
    assert len(site.fake.started) == started
    visitor.page.locator("#cv-make").click()
    visitor.has_state("done")
    assert site.fake.started[-1] == VideoRequest(PANDA, seed=77, num_frames=9, duration=2.0, superres=False)


def test_invalid_form_shows_error_without_starting(site: Site, visit: Callable[..., Visitor]) -> None:
    started = len(site.fake.started)
    visitor = visit().open(site.url)
    alert = visitor.page.get_by_role("alert")
    for prompt, sentence in (("", "是空的"), ("a panda", "没有汉字"), ("熊" * 1001, "1001"), ("   ", "是空的")):
        visitor.ask(prompt)
        expect(alert).to_contain_text(sentence)
        expect(visitor.page.locator("#cv-prompt textarea")).to_have_value(prompt)
    visitor.page.locator("#cv-fresh input").uncheck()
    for seed, sentence in (("4294967296", "超出范围"), ("", "种子为空"), ("-1", "超出范围")):
        visitor.page.locator("#cv-seed input").fill(seed)
        visitor.ask()
        expect(alert).to_contain_text(sentence)
    visitor.has_state("empty")
    assert len(site.fake.started) == started and site.jobs.queue_length() == 0


def test_seed_is_shown_and_next_seed_button_increments_it(site: Site, visit: Callable[..., Visitor]) -> None:
    site.fake.open()
    visitor = visit().open(site.url)
    visitor.choose("#cv-rate", "1 帧/秒")
    visitor.ask()
    visitor.has_state("done")
    seed = site.jobs.state(visitor.job()).request.seed
    expect(visitor.page.locator("#cv-seed input")).to_have_value(str(seed))
    expect(visitor.page.locator(".cv-meta")).to_contain_text(str(seed))
    visitor.page.locator("[data-act=next]").click()
    expect(visitor.page.locator("#cv-seed input")).to_have_value(str((seed + 1) % 2**32))
    visitor.has_state("done")
    visitor.page.locator("[data-act=finer]").click()
    visitor.has_cells(9, 9)
    visitor.has_state("done")
    assert [request.num_frames for request in site.fake.started[-3:]] == [5, 5, 9]
    assert site.fake.started[-1].seed == (seed + 1) % 2**32


def test_language_changes_all_labels_and_persists(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit(locale="de-DE").open(site.url)
    page = visitor.page
    expect(page.locator("#cv-make")).to_have_text("Make the video")
    visitor.choose("#cv-language", "中文")
    expect(page.locator("#cv-make")).to_have_text("生成视频")
    expect(page.locator(".cv-empty")).to_have_text("事先画好的一段")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    visitor.ask("")
    expect(page.get_by_role("alert")).to_contain_text("是空的")
    page.reload()
    expect(page.locator("#cv-make")).to_have_text("生成视频")


def test_history_opens_and_deletes_videos(site: Site, visit: Callable[..., Visitor]) -> None:
    site.fake.open()
    visitor = visit(viewport=PHONE).open(site.url)
    cards = visitor.page.locator("[data-shelf=history] .cv-card")
    visitor.ask("一只小猫")
    visitor.has_state("done")
    first = visitor.job()
    visitor.ask("一只小狗")
    expect(cards).to_have_count(2)
    visitor.has_state("done")
    cards.nth(1).locator(".cv-picture").click()
    expect(visitor.page.locator(".cv-status .cv-wish")).to_have_text("一只小猫")
    assert visitor.job() == first
    expect(visitor.page.locator(".cv-stage")).to_be_in_viewport()
    cards.nth(1).get_by_role("button", name="删除").click()
    expect(cards).to_have_count(2)  # asks first
    cards.nth(1).get_by_role("button", name="确定删除").click()
    expect(cards).to_have_count(1)
    assert not (site.jobs.results / first).exists()
    visitor.has_state("empty")  # what was on the stage
    expect(visitor.page).to_have_url(site.url)
    expect(visitor.page.locator(".cv-sample")).to_be_visible()


def test_phrases_are_appended_and_tokens_shown(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit(locale="en-US").open(site.url)
    page = visitor.page
    page.locator("#cv-chips button", has_text="一只兔子在雪地里跳").click()
    expect(page.locator("#cv-prompt textarea")).to_have_value("一只兔子在雪地里跳")
    expect(page.locator(".cv-reading i")).to_have_text("9 of 8 tokens")
    expect(page.locator(".cv-reading [data-kind=cut]")).to_have_text("跳")
    page.locator("#cv-prompt textarea").fill("")
    expect(page.locator("#cv-reading")).to_contain_text("who, where, and doing what")
    page.locator("#cv-prompt textarea").fill("a panda")
    expect(page.locator("#cv-reading")).to_contain_text("no Chinese")  # said while it is written
    page.locator("#cv-prompt textarea").fill("")
    page.get_by_role("button", name="Phrase bank").click()
    page.get_by_role("button", name="一只熊猫 a panda").click()
    page.get_by_role("button", name="在草地上 on grass").click()
    expect(page.locator("#cv-prompt textarea")).to_have_value("一只熊猫在草地上")
    page.locator("#cv-prompt textarea").fill("熊猫猹")
    expect(page.locator(".cv-reading [data-kind=unknown]")).to_have_text("猹")


def test_gallery_video_plays_and_fills_form(site: Site, visit: Callable[..., Visitor]) -> None:
    asked = len(site.fake.started), site.fake.loaded
    visitor = visit(viewport=PHONE, locale="en-US").open(site.url)
    page, prompt = visitor.page, visitor.page.locator("#cv-prompt textarea")
    page.wait_for_function("() => document.querySelector('.cv-sample').currentTime > 0")
    page.locator(".cv-acts [data-act=vary]").click()
    expect(prompt).to_have_value(re.compile("|".join(page.locator("[data-shelf=gallery] .cv-wish").all_inner_texts())))
    card = page.locator("[data-shelf=gallery] .cv-card").last
    expect(card.locator("video")).to_have_js_property("error", None)
    card.get_by_role("button", name="Make my own").click()
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")  # as a page that changes ends a smooth scroll
    expect(prompt).to_have_value(card.locator(".cv-wish").inner_text())
    expect(prompt).to_be_in_viewport()
    expect(page.locator("#cv-fresh input")).to_be_checked()
    assert (len(site.fake.started), site.fake.loaded) == asked


def test_late_response_keeps_newer_choice(site: Site, visit: Callable[..., Visitor]) -> None:
    visitor = visit().open(site.url)
    page = visitor.page
    late: list[Route] = []
    page.route("**/run/predict*", lambda route: route.continue_() if late else late.append(route))
    with page.expect_request("**/run/predict*"):
        visitor.choose("#cv-seconds", "2 秒")
    visitor.choose("#cv-rate", "2 帧/秒")
    late[0].continue_()
    expect(page.locator("#cv-rate")).to_contain_text("16 帧/秒")  # of two seconds: the late answer is there
    expect(page.locator("#cv-rate input:checked + span")).to_have_text("4 帧/秒")
    expect(page.locator("#cv-outcome")).to_contain_text("9 帧，共 2 秒")


def test_last_of_rapid_language_choices_wins(site: Site, visit: Callable[..., Visitor]) -> None:
    page = visit().open(site.url).page
    late: list[Route] = []
    page.route("**/run/predict*", lambda route: route.continue_() if late else late.append(route))
    page.locator("#cv-language input").first.focus()
    with page.expect_request("**/run/predict*"):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")  # while the answer in English is still under way
    with page.expect_request("**/run/predict*"):  # it is asked about once that has come
        late[0].continue_()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("#cv-make")).to_have_text("生成视频")


def test_reuse_restores_settings_of_earlier_video(site: Site, visit: Callable[..., Visitor]) -> None:
    site.fake.open()
    visitor = visit().open(site.url)
    page = visitor.page
    page.get_by_role("button", name="更多设置").click()
    page.get_by_label("把设置写入视频文件").uncheck()
    visitor.choose("#cv-rate", "1 帧/秒")
    visitor.ask("一隻熊貓在草地上")
    expect(page.locator("#cv-notice")).to_contain_text("已将繁体字转换为简体：“一只熊猫在草地上”")
    visitor.has_state("done")
    view = site.jobs.state(visitor.job())
    assert view.request.prompt == "一只熊猫在草地上" and not view.embed_settings
    visitor.choose("#cv-rate", "2 帧/秒")
    visitor.ask("一只小猫")
    cards = page.locator("[data-shelf=history] .cv-card")
    expect(cards).to_have_count(2)
    visitor.has_state("done")
    cards.nth(1).get_by_role("button", name="套用").click()
    prompt = page.locator("#cv-prompt textarea")
    expect(prompt).to_have_value("一只熊猫在草地上")
    expect(prompt).to_be_in_viewport()
    expect(page.locator("#cv-seed input")).to_have_value(str(view.request.seed))
    expect(page.locator("#cv-rate input:checked + span")).to_have_text("1 帧/秒")
    expect(page.locator("#cv-fresh input")).not_to_be_checked()


def test_uploaded_video_restores_settings(site: Site, visit: Callable[..., Visitor], tmp_path: Path) -> None:
    frames = moving_square(5, 1)
    write_video(tmp_path / "clip.mp4", frames, 2.0, {"prompt": PANDA, "seed": 99, "frames": 5, "seconds": 2.0})
    write_video(tmp_path / "plain.mp4", frames, 2.0)
    visitor = visit().open(site.url)
    page = visitor.page
    page.get_by_role("button", name="更多设置").click()
    page.locator("#cv-file input[type=file]").set_input_files(tmp_path / "clip.mp4")
    expect(page.locator("#cv-seed input")).to_have_value("99")
    expect(page.locator("#cv-prompt textarea")).to_have_value(PANDA)
    expect(page.locator("#cv-outcome")).to_contain_text("5 个关键帧，共 2 秒")
    page.locator("#cv-file input[type=file]").set_input_files(tmp_path / "plain.mp4")
    expect(page.get_by_role("alert")).to_contain_text("没有本页写入的设置")


def test_queued_job_shows_position(site: Site, visit: Callable[..., Visitor]) -> None:
    first, second = visit().open(site.url).ask(), visit(locale="en-US").open(site.url)
    first.has_state("running")
    second.ask("一只小猫")
    second.has_state("queued")
    expect(second.page.locator(".cv-what")).to_have_text("Waiting; 1 before this one")
    first.page.locator("[data-act=stop]").click()
    first.has_state("stopped")
    second.has_state("running")
    assert site.fake.most_busy == 1


def test_media_route_serves_only_exact_names(site: Site, visit: Callable[..., Visitor]) -> None:
    site.fake.open()
    visitor = visit().open(site.url).ask()
    visitor.has_state("done")
    request = visitor.page.context.request
    job = visitor.job()
    assert request.get(f"{site.url}media/{job}/final.mp4").ok
    part = request.get(f"{site.url}media/{job}/final.mp4", headers={"Range": "bytes=0-99"})
    assert part.status == 206 and len(part.body()) == 100
    for path in (
        f"media/{job}",
        f"media/{job}/",
        "media/",
        f"media/{job}/..%2f..%2fjobs.sqlite",
        "media/..%2f/jobs.sqlite",
    ):
        assert request.get(site.url + path).status == 404
