"""kill -9 of the server at each stage: what waited runs by itself, what ran can run again, what was done is there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.browsing import PANDA, Server, Visitor, expect
from tests.support.ports import free_port

CAT = "一只小猫"


def work(data: Path) -> list[str]:
    """What the pipelines of all servers so far began and ended, in order."""
    return [line.split()[0] for line in (data / "work.log").read_text().splitlines()]


def again(visitor: Visitor, name: str) -> None:
    """One click."""
    visitor.has_state("interrupted")
    expect(visitor.page.locator(".cv-what")).to_have_text(re.compile("服务重启"))
    visitor.page.locator(f"[data-act={name}]").click()


def test_server_killed_at_each_stage_loses_no_job(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"

    # While the model is read.
    server = Server(tmp_path, port)
    server.order("parts 3")
    one, two = visit().open(url), visit(locale="en-US").open(url)
    one.forgiven = two.forgiven = True
    one.choose("#cv-rate", "2 帧/秒")
    one.ask(PANDA)
    server.order("1")
    expect(one.page.locator(".cv-what")).to_have_text("正在载入模型（1/3）")
    server.kill()

    # While keyframes are painted, with somebody else's job in the queue.
    server = Server(tmp_path, port)
    again(one, "again")
    server.order("3")
    expect(one.page.locator(".cv-cells > div[data-state=painting]")).to_have_count(1)
    expect(one.page.locator(".cv-cells > div[data-state=done]")).to_have_count(1)
    two.ask(CAT)
    two.has_state("queued")
    waiting = two.job()
    server.kill()
    expect(two.page.locator(".cv-what")).to_have_text(re.compile("Connection lost"))
    server = Server(tmp_path, port)
    two.has_state("running")  # by itself, and found again without a reload
    assert two.job() == waiting and work(tmp_path) == ["begin"] * 3
    one.has_state("interrupted")
    expect(one.page.locator(".cv-cells > div[data-state=done]")).to_have_count(1)  # the keyframe that was complete

    # While in-betweens are drawn, with the repeated job in the queue.
    again(one, "again")
    one.has_state("queued")
    repeated = one.job()
    server.order("10")
    expect(two.film()).to_have_attribute("src", re.compile("level-0.mp4$"))
    server.kill()
    server = Server(tmp_path, port)
    two.has_state("interrupted")
    expect(two.film()).to_have_attribute("src", re.compile("level-0.mp4$"))  # what was complete still plays
    one.has_state("running")
    assert one.job() == repeated

    # While frames are enlarged, with nothing in the queue.
    server.order("11")
    expect(one.film()).to_have_attribute("src", re.compile("level-1.mp4$"))
    server.kill()
    server = Server(tmp_path, port)
    again(one, "again")
    server.order("open")
    one.has_state("done")

    # When all is done: everything is there, and nothing starts by itself.
    begun = len(work(tmp_path))
    server.kill()
    server = Server(tmp_path, port)
    one.page.reload()
    one.has_state("done")
    expect(one.film()).to_have_attribute("src", re.compile("final.mp4$"))
    assert one.film().evaluate("film => film.duration") > 3
    states = one.page.locator("[data-shelf=history] .cv-card .cv-small").all_inner_texts()
    assert Counter(re.split(" · ", state)[0][:2] for state in states) == {"完成": 1, "中断": 3}
    assert len(work(tmp_path)) == begun
    server.quit()
    assert Counter(work(tmp_path)) == {"begin": 5, "end": 1}  # the four that were killed never said that they ended
