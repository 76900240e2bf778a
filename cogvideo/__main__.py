"""`python -m cogvideo COMMAND ...`, or `cogvideo COMMAND ...` where it is installed: the command line.

In: the words after it. Out: an exit status, which `console` names. Each command is imported when it is called: a module
with `main(words) -> int | None`; the shell's completion is made from the commands' parsers.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cogvideo import __version__
from cogvideo.cli import console
from cogvideo.errors import Cancelled, CogVideoError

if TYPE_CHECKING:
    import argparse


@dataclass(frozen=True)
class Command:
    """A word of the command line, and the module that does it."""

    module: str
    zh: str
    en: str
    words: str = ""
    """Where its parser is made, as module:function; empty: by the module's `_parser`."""

    def main(self, words: Sequence[str]) -> int:
        return importlib.import_module(self.module).main(words) or console.DONE

    def parser(self) -> argparse.ArgumentParser:
        module, _, function = (self.words or f"{self.module}:_parser").partition(":")
        parser: argparse.ArgumentParser = getattr(importlib.import_module(module), function)()
        return parser


COMMANDS = {
    "generate": Command(
        "cogvideo.cli.generate",
        "把一句中文变成视频文件",
        "turn a Chinese sentence into a video file",
        words="cogvideo.cli.generate_args:parser",
    ),
    "serve": Command("app", "在浏览器里打开网页", "open the page in a browser", words="cogvideo.web.spaces:parser"),
    "doctor": Command(
        "cogvideo.cli.doctor",
        "检查这台机器：装了什么、能跑什么、缺什么",
        "tell what is here, what fits, what is missing",
    ),
    "download": Command(
        "cogvideo.weights.download", "下载已发布的 94 亿参数模型", "fetch the published model of 9.4 billion parameters"
    ),
    "convert": Command(
        "cogvideo.models.convert",
        "把已下载的模型转成加载更快的格式",
        "make a copy of the published model that loads faster",
    ),
    "memory": Command(
        "cogvideo.benchmarks.memory_report",
        "各显存预设的预计峰值与时间，也可实测",
        "what each memory preset takes, predicted or measured",
    ),
    "parity": Command(
        "cogvideo.evaluation.parity", "与原版的数值逐项比较", "compare every number with the original release"
    ),
    "prepare": Command(
        "cogvideo.data.prepare", "把视频和说明变成训练数据", "turn videos with captions into rows to train on"
    ),
    "train": Command(
        "cogvideo.training.recipe_runner",
        "按配方训练模型，可中断并继续",
        "train a model from a recipe; may be stopped and resumed",
    ),
    "evaluate": Command("cogvideo.evaluation.suite", "检验训练的结果", "judge what was trained"),
    "bench": Command(
        "cogvideo.benchmarks.report",
        "测量每一步的速度，与机器的极限比较",
        "time each stage, beside the limits of the machine",
    ),
    "kernels": Command("kernels.bench", "测量快速内核，与普通写法比较", "time the fast kernels beside plain ones"),
    "completion": Command(
        "cogvideo.cli.completion", "输出 shell 的命令补全脚本", "print a script that completes commands in a shell"
    ),
}


def usage() -> str:
    """The page that `--help` prints."""
    rows = "\n".join(f"  {name:10} {command.en}\n             {command.zh}" for name, command in COMMANDS.items())
    typed = console.typed()
    return f"""CogVideo {__version__}: 中文文字变视频 / Chinese text becomes video

Usage: {typed} COMMAND [options]

{rows}

Try:
  {typed} generate "一只熊猫在草地上向右跑" --seed 7 --frames 33 --out panda.mp4
  {typed} COMMAND --help        what a command takes / 查看某个命令的参数

Exit status / 退出码: 0 done; 1 the answer is no (parity, doctor, memory); 2 the request or the machine will not do, a
sentence says why; 70 a fault of this program; 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status; `arguments` are the words after `python -m cogvideo`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return console.DONE
    if words[0] in ("--version", "-V"):
        print(f"cogvideo {__version__}")
        return console.DONE
    command = COMMANDS.get(words[0])
    if command is None:
        print(_unknown(words[0]), file=sys.stderr)
        return console.REFUSED
    return _call(command, words[1:])


def _call(command: Command, words: list[str]) -> int:
    try:
        status = command.main(words)
        sys.stdout.flush()  # here, where a reader that went away can still be told from a fault
        return status
    except CogVideoError as error:
        print(f"{error.zh}\n{error.en}", file=sys.stderr)
        return console.failed(error, console.REFUSED, words)
    except (Cancelled, KeyboardInterrupt):
        return console.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return console.CLOSED
    except Exception as error:
        traceback.print_exc()
        print("这是程序的错误，请报告以上内容。\nA fault of this program: please report the above.", file=sys.stderr)
        return console.failed(error, console.FAULT, words)


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f" {near[0]}?" if near else ""
    known = ", ".join(COMMANDS)
    return f"没有命令 {word!r}。{hint} 可用的命令：{known}\nThere is no command {word!r}.{hint} There are: {known}"


if __name__ == "__main__":
    sys.exit(main())
