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
    """A command and its module, which has `main(argv)` and `parser()` and is imported on first use."""

    module: str
    zh: str
    en: str

    def main(self, argv: Sequence[str]) -> int:
        """Run the command and return its exit status."""
        return importlib.import_module(self.module).main(argv) or console.DONE

    def parser(self) -> argparse.ArgumentParser:
        """Return the parser of its arguments."""
        parser: argparse.ArgumentParser = importlib.import_module(self.module).parser()
        return parser


COMMANDS = {
    "generate": Command("cogvideo.cli.generate", "用一句中文生成视频文件", "generate a video from a Chinese sentence"),
    "serve": Command("cogvideo.cli.serve", "在浏览器中打开网页", "open the page in a browser"),
    "doctor": Command(
        "cogvideo.cli.doctor",
        "检查依赖、可用预设和缺失文件",
        "check packages, presets that fit in memory, and files",
    ),
    "download": Command(
        "cogvideo.cli.download",
        "下载 94 亿参数的已发布模型",
        "download the published model of 9.4 billion parameters",
    ),
    "convert": Command(
        "cogvideo.cli.convert",
        "把已下载的模型转换为加载更快的格式",
        "convert the published model so that it loads faster",
    ),
    "memory": Command(
        "cogvideo.cli.memory", "预测或实测各显存预设的峰值与用时", "predict or measure each memory preset"
    ),
    "parity": Command("cogvideo.cli.parity", "与原版的数值逐项比较", "compare all values with the 2022 release"),
    "prepare": Command(
        "cogvideo.cli.prepare", "把带说明的视频转换为训练数据", "convert captioned videos to training data"
    ),
    "train": Command(
        "cogvideo.cli.train", "按配方训练模型，可中断并继续", "train a model from a recipe; can be stopped and resumed"
    ),
    "evaluate": Command("cogvideo.cli.evaluate", "评测训练的模型", "evaluate a trained model"),
    "bench": Command(
        "cogvideo.cli.bench", "测量各阶段的速度，与硬件极限比较", "time each stage against the limits of the hardware"
    ),
    "kernels": Command(
        "kernels.bench", "测量快速内核，与普通实现比较", "time the fast kernels against plain implementations"
    ),
    "completion": Command(
        "cogvideo.cli.completion", "输出 shell 的命令补全脚本", "print a completion script for a shell"
    ),
}
