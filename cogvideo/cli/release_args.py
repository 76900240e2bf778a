"""The arguments of the release's `cogvideo_pipeline.py`, and what they ask for. No torch.

In: the words of a command. Out: what all films have in common, and how many are drawn at once. Words that told the
release about its processes and its files are taken, so that an old command goes on working, and change nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cogvideo.config import FRAME_COUNTS, SamplingOptions
from cogvideo.errors import RequestError
from cogvideo.request import VideoRequest

INTERACTIVE: Final = "interactive"

SEED: Final = 1234
"""Where none is given: a fixed one, so that the same command goes on with its own work."""

SAME_AS_ABOVE: Final = -1
"""The release's word for no number of its own."""

NO_MATTER: Final[dict[str, dict[str, Any]]] = {
    "--generate-frame-num": {"type": int, "choices": (FRAME_COUNTS[0],)},
    "--mode": {"choices": ("inference",)},
    "--model-parallel-size": {"type": int, "choices": (1,)},
    "--parallel-size": {"type": int, "choices": (1,)},
    "--num-workers": {"type": int},
    "--distributed-backend": {},
    "--tokenizer-type": {},
    "--fp16": {"action": "store_true"},
    "--multi-gpu": {"action": "store_true"},
    "--sandwich-ln": {"action": "store_true"},
}
"""The precision follows from the device; processes are found by themselves; the rest the model's files say."""


def add_options(group: argparse._ArgumentGroup) -> None:
    """The arguments for many sentences. `stage`: what is drawn; the last of the three words counts."""
    group.add_argument(
        "--input-source",
        metavar="FILE",
        help=f"a sentence a line, or the word {INTERACTIVE} to type them; with --stage-2 also a file or folder of "
        f"keyframes, and {INTERACTIVE} means those in --output-path / 提示词文件，每行一句",
    )
    group.add_argument("--output-path", type=Path, default=Path("output"), metavar="DIR", help="default: output")
    group.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="films for each sentence (default: 1) / 每句几段视频"
    )
    group.add_argument(
        "--max-inference-batch-size",
        type=int,
        metavar="N",
        help="rows that a network reads at once; fewer take less memory, and the films are the same (default: 32 in "
        "stage 2) / 网络一次处理的最大行数",
    )
    group.add_argument(
        "--stage1-max-inference-batch-size",
        type=int,
        default=SAME_AS_ABOVE,
        metavar="N",
        help="the same for stage 1, in films (default: as above, else 1) / 第一阶段一次生成的视频数",
    )
    for word, told in (
        ("both-stages", "all of the film (the default) / 完整视频"),
        ("stage-1", "the five keyframes alone, small, kept as tokens too / 只生成关键帧并保存"),
        ("stage-2", "the films whose keyframes --stage-1 kept / 由保存的关键帧继续生成"),
    ):
        group.add_argument(f"--{word}", dest="stage", action="store_const", const=word, help=told)
    group.add_argument("--use-guidance-stage1", action="store_true", help="keyframes with guidance / 关键帧使用引导")
    group.add_argument("--use-guidance-stage2", action="store_true", help="frames between with guidance / 插帧使用引导")
    group.add_argument("--guidance-alpha", type=float, default=3.0, metavar="X", help="how strong (default: 3)")
    group.add_argument(
        "--coglm-temperature2",
        type=float,
        metavar="X",
        help="of the draw within a cluster, after the first frame (default: the model's own) / 类内采样温度",
    )
    for word, kind in NO_MATTER.items():
        group.add_argument(word, help=argparse.SUPPRESS, **kind)


def request_like(options: argparse.Namespace, sampling: SamplingOptions, enlarge: bool) -> VideoRequest:
    """What all films have in common, without a sentence. Raises RequestError.

    `enlarge`: whether super-resolution is on where the options do not say.
    """
    if options.guidance is None:
        sampling = replace(sampling, guidance_scale=options.guidance_alpha if options.use_guidance_stage1 else 1.0)
    film = VideoRequest(
        prompt="",
        seed=SEED if options.seed is None else options.seed,
        num_frames=options.frames,
        duration=options.seconds,
        superres=enlarge if options.superres is None else options.superres,
        sampling=replace(
            sampling, interpolation_guidance_scale=options.guidance_alpha if options.use_guidance_stage2 else 1.0
        ),
    )
    return keyframes_like(film) if options.stage == "stage-1" else film


def keyframes_like(film: VideoRequest) -> VideoRequest:
    """The request of --stage-1 from whose keyframes --stage-2 makes `film`, however it draws the rest."""
    sampling = film.sampling and replace(film.sampling, interpolation_guidance_scale=1.0)
    return replace(film, num_frames=FRAME_COUNTS[0], superres=False, sampling=sampling)


def batches(options: argparse.Namespace) -> tuple[int, int]:
    """(films at once in stage 1, rows at once in stage 2). Raises RequestError for numbers below 1."""
    from cogvideo.inference.decoding import MAX_ROWS

    first = options.stage1_max_inference_batch_size
    most = options.max_inference_batch_size
    for word, number in (
        ("--batch-size", options.batch_size),
        ("--max-inference-batch-size", most),
        ("--stage1-max-inference-batch-size", None if first == SAME_AS_ABOVE else first),
    ):
        if number is not None and number < 1:
            raise RequestError(
                f"{word} 不能是 {number}：请输入 1 或更大的整数。",
                f"{word} cannot be {number}: give a whole number, 1 or more.",
            )
    return (most or 1) if first == SAME_AS_ABOVE else first, most or MAX_ROWS
