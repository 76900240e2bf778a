"""The words of `python -m cogvideo generate`, in groups. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cogvideo.cli import console, release_args
from cogvideo.config import (
    DURATIONS,
    FRAME_COUNTS,
    MAX_BEST_OF,
    MAX_GUIDANCE,
    MAX_SEED,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    PRESETS,
)
from cogvideo.runtime.memory_presets import MEMORY_PRESETS

DESCRIPTION = """\
把一句中文变成一段视频。不需要显卡：小模型 mini 随仓库附带，在普通电脑上约十几秒完成。
Turns a Chinese sentence into a video. No graphics card needed: the small model, mini, comes with this repository.

The video is drawn in three steps: five keyframes, then the frames between them (5 -> 9 -> 17 -> 33), then every frame
at three times the size. The same sentence with the same seed always gives the same video."""

EXAMPLES = """\
examples / 例子:
  python -m cogvideo generate "一只熊猫在草地上向右跑"
  python -m cogvideo generate "一只熊猫在草地上向右跑" --seed 7 --frames 33 --out panda.mp4
  python -m cogvideo generate "夜空中一枚火箭向上飞" --frames 9 --seconds 2 --gif
  python -m cogvideo generate --input-source examples/prompts.txt --output-path films --use-guidance-stage1
"""


def parser() -> console.Parser:
    """What `generate` takes: a sentence, or many with the arguments of the release."""
    words = console.Parser("generate", description=DESCRIPTION, epilog=EXAMPLES)
    words.add_argument("prompt", nargs="?", help="what to show, in Chinese / 用中文描述画面")
    _what_options(words.add_argument_group("what to draw / 生成什么"))
    _file_options(words.add_argument_group("the file / 文件"))
    _how_options(words.add_argument_group("how to draw / 如何生成"))
    release_args.add_options(words.add_argument_group("many sentences, as in the release / 批量生成（与原版参数相同）"))
    return words


def _what_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help=f"0 to {MAX_SEED}; another seed, another video (default: random) / 种子，换一个就换一段视频",
    )
    group.add_argument(
        "--frames",
        type=int,
        default=FRAME_COUNTS[-1],
        metavar="N",
        help=f"{_choices(FRAME_COUNTS)}: more is smoother (default: {FRAME_COUNTS[-1]}) / 帧数，越多越流畅",
    )
    group.add_argument(
        "--seconds",
        type=float,
        default=DURATIONS[0],
        metavar="S",
        help=f"{_choices(DURATIONS)}: how long the scene lasts (default: {DURATIONS[0]:g}) / 时长（秒）",
    )
    group.add_argument(
        "--superres",
        action=argparse.BooleanOptionalAction,
        help="enlarge every frame three times at the end (default: as the model says) / 最后是否做超分，默认依模型而定",
    )


def _file_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", type=Path, metavar="FILE", help=".mp4 or .gif (default: cogvideo-SEED.mp4) / 输出文件名"
    )
    group.add_argument("--gif", action="store_true", help="write a .gif as well / 另存一份 gif")
    group.add_argument(
        "--no-metadata", action="store_true", help="keep prompt and settings out of the file / 文件中不保存提示词和设置"
    )
    group.add_argument("--quiet", action="store_true", help="print the file's name and nothing else / 只输出文件名")
    console.add_json(group)


def _how_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model",
        metavar="NAME",
        help=f"{_choices(PRESETS)}, or the folder of a trained model (default: $COGVIDEO_MODEL, else cogvideo where "
        "its files are there and a card has room, else mini) / 使用哪个模型",
    )
    group.add_argument(
        "--download",
        action="store_true",
        help="where the files of the model cogvideo are missing, fetch them without asking (43 GB) / 缺少时直接下载",
    )
    group.add_argument(
        "--guidance",
        type=float,
        metavar="X",
        help=f"1 to {MAX_GUIDANCE:g}: how strictly the prompt counts (default: the model's own) / 引导强度",
    )
    group.add_argument(
        "--temperature",
        type=float,
        metavar="X",
        help=f"{MIN_TEMPERATURE} to {MAX_TEMPERATURE:g}: low is tidy, high is wild (default: the model's "
        "own) / 温度，越低越规整，越高越多变",
    )
    group.add_argument(
        "--top-k",
        "--top_k",
        type=int,
        metavar="N",
        help="how many clusters of similar tokens may be drawn from (default: the model's own) / 每步保留多少个候选类",
    )
    group.add_argument(
        "--candidates",
        type=int,
        metavar="N",
        help=f"1 to {MAX_BEST_OF}: of so many first frames the likeliest is gone on from (default: the model's own) "
        "/ 首帧候选数，取其中最可能的一张",
    )
    group.add_argument(
        "--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where there is one) / 计算设备"
    )
    group.add_argument(
        "--memory",
        metavar="NAME",
        help=f"{_choices(MEMORY_PRESETS)}: how the model is held on the card (default: $COGVIDEO_MEMORY, else the "
        "first that fits by a prediction from the sizes, which was not yet measured on a GPU) / 显存预设",
    )
    group.add_argument(
        "--eight-bit",
        action="store_true",
        help="keep the weights in 8 bits: less memory, slower / 权重用 8 位存放，省内存",
    )
    group.add_argument(
        "--offload",
        action="store_true",
        help="each matrix comes from host memory for its product: least memory, slowest / 逐个矩阵调入，最省也最慢",
    )


def _choices(values: Iterable[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
