"""Draws the clips that the page shows before anybody has made one, from examples/gallery/gallery.json.

Run it again after the weights of mini changed. `python scripts/docs/make_gallery.py [--only 0,3]`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cogvideo.media.video import write_video  # noqa: E402
from cogvideo.pipeline import CogVideoPipeline  # noqa: E402
from cogvideo.request import VideoRequest  # noqa: E402

FOLDER = ROOT / "examples" / "gallery"


def main() -> None:
    """Draws the chosen clips of gallery.json over those that are there, and says which."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="numbers of the clips to draw, such as 0,3 (default: all)")
    options = parser.parse_args()
    clips = json.loads((FOLDER / "gallery.json").read_text("utf-8"))
    chosen = {int(number) for number in options.only.split(",")} if options.only else set(range(len(clips)))
    pipeline = CogVideoPipeline.from_pretrained("mini")
    for number, clip in enumerate(clips):
        if number in chosen:
            large = pipeline.preset.upscale_by_default
            request = VideoRequest(clip["prompt"], clip["seed"], clip["frames"], clip["seconds"], superres=large)
            settings = {"prompt": request.prompt, "seed": request.seed, "model": "mini"}
            print(write_video(FOLDER / clip["file"], pipeline(request), request.duration, settings), clip["prompt"])


if __name__ == "__main__":
    main()
