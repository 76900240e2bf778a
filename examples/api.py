"""Ask a running page for a video from a program and save it: python examples/api.py "一只熊猫在草地上向右跑" panda.mp4

`make_video` takes prompt, seed, frames, seconds, super-resolution, guidance and key. With a key of your own, of 16
characters or more, you may stop and delete the video later; an empty one makes a new key and says it. The same by curl:
docs/programs.md.
"""

from __future__ import annotations

import argparse
import time
import urllib.request
from pathlib import Path
from typing import Any

from gradio_client import Client


def make(server: str, prompt: str, out: Path, seed: int = -1, frames: int = 33) -> dict[str, Any]:
    """Makes a video, waits for it, writes it to `out` and returns what the server last said of it."""
    client = Client(server, verbose=False, httpx_kwargs={"timeout": 120})  # busy with a model it answers late
    job = client.predict(prompt, seed, frames, api_name="/make_video")
    print(f"seed {job['seed']}, watch it at {server}?job={job['id']}")
    while (video := client.predict(job["id"], api_name="/video"))["status"] in ("queued", "running"):
        print(f"{video['status']}: {video['done']} of {video['total']} tokens", flush=True)
        time.sleep(1)
    if video["file"]:
        with urllib.request.urlopen(server + video["file"]) as answer:
            out.write_bytes(answer.read())
    return dict(video)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt")
    parser.add_argument("out", type=Path)
    parser.add_argument("--server", default="http://127.0.0.1:7860/")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--frames", type=int, default=33)
    options = parser.parse_args()
    video = make(options.server, options.prompt, options.out, options.seed, options.frames)
    print(video["status"], options.out)


if __name__ == "__main__":
    main()
