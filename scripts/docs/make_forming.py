"""The moving picture of both READMEs: five keyframes fill, then each round puts frames between them.

python scripts/docs/make_forming.py [--prompt 一只熊猫在草地上向右跑] [--seed 7] [--output assets/readme/forming.gif]

Every picture is one that the page shows: previews of a growing keyframe, finished keyframes, and the rounds of 9, 17
and 33 frames, of `mini`. Run it again after the weights of mini changed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from cogvideo import (  # noqa: E402
    CogVideoPipeline,
    KeyframeCompleted,
    KeyframePreview,
    RoundCompleted,
    VideoRequest,
)

CELL, PLAYER, GAP, TICKS = 112, 176, 4, 8
"""Pixels along a side of a keyframe, of the playing video, between pictures, and of the row of ticks."""
COLUMNS = 5
GROUND, EMPTY, MARK = (24, 26, 32), (52, 56, 66), (240, 128, 96)


def scaled(frame: np.ndarray, side: int) -> Image.Image:
    """Scale a frame uint8 [H, W, 3] to a square."""
    return Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)


def picture(keyframes: dict[int, np.ndarray], video: np.ndarray | None = None, shown: int = 0) -> Image.Image:
    """Draw the five keyframes; below them frame `shown` of `video` [F, H, W, 3], and a tick for each of its frames."""
    width = COLUMNS * CELL + (COLUMNS + 1) * GAP
    canvas = Image.new("RGB", (width, CELL + PLAYER + TICKS + 4 * GAP), GROUND)
    for index in range(COLUMNS):
        known = index in keyframes
        cell = scaled(keyframes[index], CELL) if known else Image.new("RGB", (CELL, CELL), EMPTY)
        canvas.paste(cell, (GAP + index * (CELL + GAP), GAP))
    top = CELL + 2 * GAP
    if video is None:
        return canvas
    canvas.paste(scaled(video[shown], PLAYER), ((width - PLAYER) // 2, top))
    for index in range(len(video)):
        colour = MARK if index == shown else EMPTY
        left = GAP + (width - 3 * GAP) * index // (len(video) - 1)
        canvas.paste(Image.new("RGB", (GAP, TICKS), colour), (left, top + PLAYER + GAP))
    return canvas


def pictures(prompt: str, seed: int) -> Iterator[tuple[Image.Image, int]]:
    """Yield the pictures and how long each is shown, in milliseconds."""
    pipeline = CogVideoPipeline.from_pretrained("mini", device="cpu")
    keyframes: dict[int, np.ndarray] = {}
    yield picture(keyframes), 400
    for event in pipeline.stream(VideoRequest(prompt, seed=seed, superres=False)):
        if isinstance(event, KeyframePreview | KeyframeCompleted):
            keyframes[event.index] = event.frame
            yield picture(keyframes), 160 if isinstance(event, KeyframePreview) else 320
        if isinstance(event, RoundCompleted):
            for shown in range(len(event.frames)):
                yield picture(keyframes, event.frames, shown), 1800 // len(event.frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="一只熊猫在草地上向右跑")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--output", type=Path, default=ROOT / "assets" / "readme" / "forming.gif")
    options = parser.parse_args()
    shown, durations = zip(*pictures(options.prompt, options.seed), strict=True)
    colours = shown[-1].quantize(96)  # one palette for all, so that what does not change costs no bytes
    first, *others = (image.quantize(palette=colours, dither=Image.Dither.NONE) for image in shown)
    first.save(options.output, save_all=True, append_images=others, duration=list(durations), loop=0, optimize=True)
    print(options.output, f"{options.output.stat().st_size / 1e3:.0f} kB, {len(shown)} pictures")


if __name__ == "__main__":
    main()
