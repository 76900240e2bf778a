"""Table of the commands: name, module and help."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cogvideo.cli import console

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True)
class Command:
    """A word of the command line, and the module that does it."""

    module: str
    zh: str
    en: str
    parser_path: str = ""
    """Where its parser is made, as module:function; empty: by the module's `_parser`."""

    def main(self, argv: Sequence[str]) -> int:
        return importlib.import_module(self.module).main(argv) or console.DONE

    def parser(self) -> argparse.ArgumentParser:
        module, _, function = (self.parser_path or f"{self.module}:_parser").partition(":")
        parser: argparse.ArgumentParser = getattr(importlib.import_module(module), function)()
        return parser


COMMANDS = {
    "generate": Command(
        "cogvideo.cli.generate",
        "把一句中文变成视频文件",
        "turn a Chinese sentence into a video file",
        parser_path="cogvideo.cli.generate_args:parser",
    ),
    "serve": Command(
        "cogvideo.cli.serve",
        "在浏览器里打开网页",
        "open the page in a browser",
        parser_path="cogvideo.cli.serve:parser",
    ),
    "doctor": Command(
        "cogvideo.cli.doctor",
        "检查这台机器：装了什么、能跑什么、缺什么",
        "tell what is here, what fits, what is missing",
    ),
    "download": Command(
        "cogvideo.cli.download", "下载已发布的 94 亿参数模型", "fetch the published model of 9.4 billion parameters"
    ),
    "convert": Command(
        "cogvideo.cli.convert",
        "把已下载的模型转成加载更快的格式",
        "make a copy of the published model that loads faster",
    ),
    "memory": Command(
        "cogvideo.cli.memory",
        "各显存预设的预计峰值与时间，也可实测",
        "what each memory preset takes, predicted or measured",
    ),
    "parity": Command("cogvideo.cli.parity", "与原版的数值逐项比较", "compare every number with the original release"),
    "prepare": Command(
        "cogvideo.cli.prepare", "把视频和说明变成训练数据", "turn videos with captions into rows to train on"
    ),
    "train": Command(
        "cogvideo.cli.train",
        "按配方训练模型，可中断并继续",
        "train a model from a recipe; may be stopped and resumed",
    ),
    "evaluate": Command("cogvideo.cli.evaluate", "检验训练的结果", "judge what was trained"),
    "bench": Command(
        "cogvideo.cli.bench",
        "测量每一步的速度，与机器的极限比较",
        "time each stage, beside the limits of the machine",
    ),
    "kernels": Command("kernels.bench", "测量快速内核，与普通写法比较", "time the fast kernels beside plain ones"),
    "completion": Command(
        "cogvideo.cli.completion", "输出 shell 的命令补全脚本", "print a script that completes commands in a shell"
    ),
}
