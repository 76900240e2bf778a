"""The page with a pipeline that waits for orders on standard input: a number of steps, `open`, `close` or `quit`.

python tests/serve_fake.py DATA PORT. A server that a test can kill.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fakes import PRESET, FakePipeline  # noqa: E402

import app  # noqa: E402
from cogvideo.jobs import Jobs, Limits  # noqa: E402
from cogvideo.video import write_video  # noqa: E402


def main() -> None:
    data, port = Path(sys.argv[1]), int(sys.argv[2])
    fake = FakePipeline()
    jobs = Jobs(data, PRESET, lambda: fake, write_video, Limits(preview_seconds=0))
    app.serve(jobs, "127.0.0.1", port)
    jobs.start()
    print("up", flush=True)
    for line in sys.stdin:
        order = line.strip()
        if order == "quit":
            break
        if order in ("open", "close"):
            getattr(fake, order)()
        else:
            fake.step(int(order))
    jobs.close()
    os._exit(0)  # what is left are Gradio's threads


if __name__ == "__main__":
    main()
