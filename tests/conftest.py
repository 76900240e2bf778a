"""For all tests: hypothesis neither watches the clock, which a busy machine would fail, nor rolls new dice.

And one served page for all tests that look at it in a browser.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from cogvideo.jobs.service import JobService
    from tests.support.browsing import Site, Visitor
    from tests.support.fakes import FakePipeline

# Tests side by side share the cores, as do the programs that they start: more threads than cores only wait.
_SIDE_BY_SIDE = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _SIDE_BY_SIDE > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _SIDE_BY_SIDE)))

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


@pytest.fixture
def fake() -> FakePipeline:
    """A pipeline that draws squares, each step when the test says so."""
    from tests.support.fakes import FakePipeline

    return FakePipeline()


@pytest.fixture
def jobs(tmp_path: Path, fake: FakePipeline) -> Iterator[JobService]:
    """A queue whose worker draws with `fake`, in an empty folder."""
    from cogvideo.jobs.queue import Limits
    from cogvideo.jobs.service import JobService
    from tests.support.fakes import PRESET, PlainFilm

    jobs = JobService(tmp_path, PRESET, lambda: fake, PlainFilm, Limits(preview_seconds=0))
    jobs.start()
    yield jobs
    jobs.close()


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A copy of the toy checkpoints in the published format, which may be spoilt."""
    return Path(shutil.copytree(Path(__file__).parent / "golden", tmp_path / "published"))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from cogvideo.jobs.queue import Limits
    from cogvideo.jobs.service import JobService
    from cogvideo.media.video import VideoWriter
    from cogvideo.web import server
    from tests.support.browsing import Site
    from tests.support.fakes import PRESET, FakePipeline
    from tests.support.ports import free_port

    fake = FakePipeline()
    jobs = JobService(tmp_path_factory.mktemp("data"), PRESET, lambda: fake, VideoWriter, Limits(preview_seconds=0))
    port = free_port()
    ui = server.serve(jobs, "127.0.0.1", port)
    jobs.start()
    yield Site(f"http://127.0.0.1:{port}/", jobs, fake)
    ui.close()
    jobs.close()


@pytest.fixture
def site(served: Site) -> Iterator[Site]:
    """The same server for all tests; each starts with an idle worker that waits for steps."""
    from tests.support.browsing import PATIENCE

    served.fake.reset()
    yield served
    served.fake.open()
    changed = served.jobs._queue.changed
    with changed:
        assert changed.wait_for(lambda: not served.jobs.queue_length(), timeout=PATIENCE / 1000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Not for the whole session: while it lives, no test may run an event loop of its own."""
    from playwright.sync_api import sync_playwright

    from tests.support.browsing import CHROMIUM, FLAGS

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visitor]]:
    """Makes visitors; at the end none of them may have met an error or another host."""
    from tests.support.browsing import DESKTOP, PATIENCE, Visitor

    visitors: list[Visitor] = []

    def come(**options: Any) -> Visitor:
        context = browser.new_context(**{"viewport": DESKTOP, "locale": "zh-CN", **options})
        context.set_default_timeout(PATIENCE)
        visitors.append(Visitor(context.new_page()))
        return visitors[-1]

    yield come
    for visitor in visitors:
        visitor.page.context.close()
        assert visitor.foreign == []
        assert visitor.forgiven or visitor.complaints == []
