"""The page with a pipeline that waits for orders on standard input: a number of steps, `open`, `close` or `quit`.

python tests/support/serve_fake.py DATA PORT [--waiting JOBS]
`pace 150`: every token takes its time, 150 of them a second; `pace 0`: none takes any. `parts 3`: the model is read in
three steps.
A server that a test can kill. DATA/work.log says when work on which seed began and ended.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402

from cogvideo.errors import Cancelled  # noqa: E402
from cogvideo.events import Event, KeyframePreview, Loading, Progress  # noqa: E402
from cogvideo.jobs.queue import Limits  # noqa: E402
from cogvideo.jobs.service import JobService  # noqa: E402
from cogvideo.media.video import VideoWriter  # noqa: E402
from cogvideo.request import VideoRequest  # noqa: E402
from cogvideo.web import server  # noqa: E402
from tests.support.fakes import PRESET, FakePipeline  # noqa: E402


class Logged(FakePipeline):
    """Writes a line when work begins and ends; with a `pace` (tokens a second) it is as slow as a real one."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self._log_file = log.open("a")
        self.pace = 0.0
        self.parts = 0

    def stream(self, request: VideoRequest, stop: Callable[[], bool] | None = None) -> Generator[Event, None, None]:
        self._note("begin", request)
        try:
            events = super().stream(request, stop)
            yield from self._paced(events, stop or (lambda: False)) if self.pace else events
        finally:
            self._note("end", request)

    def _draw(self, request: VideoRequest, stop: Callable[[], bool]) -> Generator[Event, None, None]:
        for part in range(self.parts):
            yield Loading("models", part, self.parts)
            self._wait(stop)
        yield from super()._draw(request, stop)

    def _note(self, word: str, request: VideoRequest) -> None:
        self._log_file.write(f"{word} {request.seed}\n")
        self._log_file.flush()

    def _paced(self, events: Generator[Event, None, None], stop: Callable[[], bool]) -> Generator[Event, None, None]:
        """The same events with one for every token between them, and pictures as large as real ones."""
        noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
        done = 0
        for event in events:
            if isinstance(event, Progress):
                for token in range(done + 1, event.done):
                    time.sleep(1 / self.pace if self.pace else 0)
                    if stop():
                        raise Cancelled
                    yield Progress(event.stage, token, event.total)
                done = event.done
            yield replace(event, frame=noise) if isinstance(event, KeyframePreview) else event


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--waiting", type=int, default=Limits.waiting)
    options = parser.parse_args()
    fake = Logged(options.data / "work.log")
    limits = Limits(waiting=options.waiting, preview_seconds=0)
    jobs = JobService(options.data, PRESET, lambda: fake, VideoWriter, limits)
    server.serve(jobs, "127.0.0.1", options.port)
    jobs.start(preload=True)
    print("up", flush=True)
    for line in sys.stdin:
        order = line.strip()
        if order == "quit":
            break
        if order in ("open", "close"):
            getattr(fake, order)()
        elif order.startswith(("pace", "parts")):
            name, number = order.split()
            setattr(fake, name, float(number) if name == "pace" else int(number))
        else:
            fake.step(int(order))
    jobs.close()
    os._exit(0)  # what is left are Gradio's threads


if __name__ == "__main__":
    main()
