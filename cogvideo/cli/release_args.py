"""Arguments of `cogvideo_pipeline.py` of the 2022 release, and the requests that they describe.

Arguments that configured the release's processes and files are accepted and ignored, so that old commands still run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from cogvideo.config import FRAME_COUNTS, SamplingOptions
from cogvideo.errors import RequestError
from cogvideo.messages import message
from cogvideo.request import VideoRequest

INTERACTIVE: Final = "interactive"

DEFAULT_SEED: Final = 1234
"""Fixed, so that the same command resumes its own work."""

SAME_AS_STAGE2: Final = -1
"""Value of --stage1-max-inference-batch-size if stage 1 has no limit of its own."""

IGNORED: Final[dict[str, dict[str, Any]]] = {
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
"""The device determines the precision, the environment the processes, and the model's files the rest."""


def add_options(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of batches. If several of the three stage options are given, the last one applies."""
    group.add_argument(
        "--input-source",
        metavar="FILE",
        help=f"file with a prompt a line, or {INTERACTIVE} to type prompts; with --stage-2 also a file or folder of "
        f"keyframes, and {INTERACTIVE} means those in --output-path / 提示词文件，每行一句",
    )
    group.add_argument("--output-path", type=Path, default=Path("output"), metavar="DIR", help="default: output")
    group.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="videos per prompt (default: 1) / 每句提示词的视频数"
    )
    group.add_argument(
        "--max-inference-batch-size",
        type=int,
        metavar="N",
        help="rows per network call; fewer need less memory, same videos (default: 32 in stage 2) / 网络单次最大行数",
    )
    group.add_argument(
        "--stage1-max-inference-batch-size",
        type=int,
        default=SAME_AS_STAGE2,
        metavar="N",
        help="videos per network call in stage 1 (default: the option above, else 1) / 第一阶段一次生成的视频数",
    )
    for name, text in (
        ("both-stages", "complete videos (default) / 完整视频"),
        ("stage-1", "only the five keyframes, without super-resolution, saved as tokens too / 只生成关键帧并保存"),
        ("stage-2", "complete videos from the keyframes that --stage-1 saved / 由保存的关键帧继续生成"),
    ):
        group.add_argument(f"--{name}", dest="stage", action="store_const", const=name, help=text)
    group.add_argument("--use-guidance-stage1", action="store_true", help="guidance for keyframes / 关键帧使用引导")
    group.add_argument("--use-guidance-stage2", action="store_true", help="guidance for interpolation / 插帧使用引导")
    group.add_argument(
        "--guidance-alpha", type=float, default=3.0, metavar="X", help="guidance scale (default: 3) / 引导强度"
    )
    group.add_argument(
        "--coglm-temperature2",
        type=float,
        metavar="X",
        help="temperature within a cluster, after the first frame (default: as the model) / 类内采样温度",
    )
    for name, arguments in IGNORED.items():
        group.add_argument(name, help=argparse.SUPPRESS, **arguments)


def base_request(options: argparse.Namespace, sampling: SamplingOptions, upscale: bool) -> VideoRequest:
    """Return what all videos of a batch have in common, with an empty prompt. Raises RequestError.

    `upscale`: super-resolution if the options do not state it.
    """
    if options.guidance is None:
        sampling = replace(sampling, guidance_scale=options.guidance_alpha if options.use_guidance_stage1 else 1.0)
    request = VideoRequest(
        prompt="",
        seed=DEFAULT_SEED if options.seed is None else options.seed,
        num_frames=options.frames,
        duration=options.seconds,
        superres=upscale if options.superres is None else options.superres,
        sampling=replace(
            sampling, interpolation_guidance_scale=options.guidance_alpha if options.use_guidance_stage2 else 1.0
        ),
    )
    return keyframe_request(request) if options.stage == "stage-1" else request


def keyframe_request(request: VideoRequest) -> VideoRequest:
    """Return the request of --stage-1 whose keyframes --stage-2 uses for `request`."""
    sampling = request.sampling and replace(request.sampling, interpolation_guidance_scale=1.0)
    return replace(request, num_frames=FRAME_COUNTS[0], superres=False, sampling=sampling)


def batch_sizes(options: argparse.Namespace) -> tuple[int, int]:
    """Return (videos per call in stage 1, rows per call in stage 2). Raises RequestError for numbers below 1."""
    from cogvideo.inference.decoding import MAX_ROWS

    stage1 = options.stage1_max_inference_batch_size
    rows = options.max_inference_batch_size
    for name, number in (
        ("--batch-size", options.batch_size),
        ("--max-inference-batch-size", rows),
        ("--stage1-max-inference-batch-size", None if stage1 == SAME_AS_STAGE2 else stage1),
    ):
        if number is not None and number < 1:
            raise RequestError(*message("release_args.not_positive", name=name, number=number))
    return (rows or 1) if stage1 == SAME_AS_STAGE2 else stage1, rows or MAX_ROWS
