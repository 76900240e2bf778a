"""Arguments of `python -m cogvideo generate`, in groups."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from cogvideo.cli import console, release_args
from cogvideo.cli.model_options import add_model_options, add_renamed
from cogvideo.config import (
    DURATIONS,
    FRAME_COUNTS,
    MAX_BEST_OF,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
)

DESCRIPTION = """\
用一句中文生成一段视频。不需要显卡：小模型 mini 随仓库附带，在普通电脑上约十几秒完成。
Generate a video from a Chinese sentence. No GPU is needed: mini, a small model, is included in this repository.

Three stages: five keyframes, interpolation (5 -> 9 -> 17 -> 33 frames), and 3x super-resolution of each frame.
The same prompt, seed and options always generate the same video."""

EXAMPLES = """\
examples / 例子:
  python -m cogvideo generate "一只熊猫在草地上向右跑"
  python -m cogvideo generate "一只熊猫在草地上向右跑" --seed 7 --frames 33 --output panda.mp4
  python -m cogvideo generate "夜空中一枚火箭向上飞" --frames 9 --seconds 2 --gif
  python -m cogvideo generate --input-source examples/prompts.txt --output-path videos --use-guidance-stage1
"""


def parser() -> console.Parser:
    """Return the parser of `generate`: one prompt, or a file of prompts with the arguments of the 2022 release."""
    root = console.Parser("generate", description=DESCRIPTION, epilog=EXAMPLES)
    root.add_argument("prompt", nargs="?", help="the scene, in Chinese / 用中文描述画面")
    _add_video_options(root.add_argument_group("video / 视频"))
    _add_file_options(root.add_argument_group("file / 文件"))
    models = root.add_argument_group("model / 模型")
    add_model_options(models)
    models.add_argument(
        "--download",
        action="store_true",
        help="download missing files of the model cogvideo without a question (43 GB) / 缺少文件时直接下载",
    )
    _add_sampling_options(root.add_argument_group("sampling / 采样"))
    release_args.add_options(root.add_argument_group("batches, as in the 2022 release / 批量生成（与原版参数相同）"))
    return root


def _add_video_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help=f"0 to {MAX_SEED}; each seed gives another video (default: random) / 随机种子，不同种子生成不同视频",
    )
    group.add_argument(
        "--frames",
        type=int,
        default=FRAME_COUNTS[-1],
        metavar="N",
        help=f"{_joined(FRAME_COUNTS)}; more frames are smoother (default: {FRAME_COUNTS[-1]}) / 帧数，越多越流畅",
    )
    group.add_argument(
        "--seconds",
        type=float,
        default=DURATIONS[0],
        metavar="S",
        help=f"duration: {_joined(DURATIONS)} (default: {DURATIONS[0]:g}) / 时长（秒）",
    )
    group.add_argument(
        "--superres",
        action=argparse.BooleanOptionalAction,
        help="3x super-resolution of each frame (default: as the model) / 是否超分，默认依模型而定",
    )


def _add_file_options(group: argparse._ArgumentGroup) -> None:
    add_renamed(
        group,
        "--output",
        "--out",
        type=Path,
        metavar="FILE",
        help=".mp4 or .gif (default: cogvideo-SEED.mp4) / 输出文件",
    )
    group.add_argument("--gif", action="store_true", help="write a .gif as well / 另存一份 gif")
    group.add_argument(
        "--no-metadata", action="store_true", help="omit prompt and settings from the file / 文件中不保存提示词和设置"
    )
    group.add_argument("--quiet", action="store_true", help="print only the file name / 只输出文件名")
    console.add_json(group)


def _add_sampling_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--guidance",
        type=float,
        metavar="X",
        help=f"guidance scale, 1 to {MAX_GUIDANCE:g}: higher follows the prompt more closely (default: as the model) "
        "/ 引导强度，越高越贴近提示词",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help=f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}: lower is more predictable, higher more varied "
        "(default: as the model) / 温度，越低越稳定，越高越多样",
    )
    group.add_argument(
        "--top-k",
        "--top_k",
        type=int,
        metavar="N",
        help="clusters of similar tokens to sample from (default: as the model) / 每步保留的候选类数",
    )
    group.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help=f"1 to {MAX_BEST_OF}: first frames to sample, of which the likeliest is used (default: as the model) "
        "/ 首帧候选数，采用概率最高的一张",
    )


def _joined(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
