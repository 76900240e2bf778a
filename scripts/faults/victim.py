"""A server, or a worker without a page, that is made to be killed: it notes what it starts and draws at odd speeds.

python -m scripts.faults.victim DATA [PORT]. Orders come on standard input: a seed is a video to make, `quit` is an
orderly end. It prints `up`, and `accepted ID SEED` once a video is in the queue for good, or `refused`.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from cogvideo.errors import CapacityError  # noqa: E402
from cogvideo.events import Event  # noqa: E402
from cogvideo.jobs.queue import Limits  # noqa: E402
from cogvideo.jobs.service import JobService  # noqa: E402
from cogvideo.media.video import VideoWriter  # noqa: E402
from cogvideo.request import VideoRequest  # noqa: E402
from tests.support.fakes import PRESET, FakePipeline, PlainFilm  # noqa: E402

KEY = "the victim's own key"
STARTED = "started.txt"
MANY = Limits(waiting=10**6, per_owner=10**6, preview_seconds=0)


class Noted(FakePipeline):
    """Writes down which seed it starts, before anything else, and pauses between two events."""

    def __init__(self, notes: Path, longest_pause: float) -> None:
        super().__init__(free=True)
        self._notes, self._longest_pause = notes, longest_pause

    def stream(self, request: VideoRequest, stop: Callable[[], bool] | None = None) -> Generator[Event, None, None]:
        with self._notes.open("a") as out:
            out.write(f"{request.seed}\n")
        for event in super().stream(request, stop):
            yield event
            time.sleep(random.random() * self._longest_pause)


def main() -> None:
    """Takes orders from standard input until `quit` or the end of it; words and environment as said above."""
    data = Path(sys.argv[1])
    port = int(sys.argv[2]) if len(sys.argv) > 2 else None
    pipeline = Noted(data / STARTED, float(os.environ.get("PAUSE", "0.03")))
    writer = VideoWriter if os.environ.get("FILMS") == "real" else PlainFilm
    jobs = JobService(data, PRESET, lambda: pipeline, writer, MANY)
    if port is not None:
        from cogvideo.web import server

        server.serve(jobs, "127.0.0.1", port)
    jobs.start()
    print("up", flush=True)
    for line in sys.stdin:
        if line.strip() == "quit":
            break
        try:
            view = jobs.submit(VideoRequest("熊猫", seed=int(line), num_frames=9, superres=False), KEY)
        except CapacityError:
            print("refused", flush=True)
        else:
            print("accepted", view.id, view.request.seed, flush=True)
    jobs.close()
    os._exit(0)  # what is left are Gradio's threads


if __name__ == "__main__":
    main()
