"""`python -m cogvideo COMMAND ...`: in the command line, out an exit status. Each command is imported when called.

0: done. 1: the answer is no (`parity` found a difference). 2: the request or the machine will not do; a sentence says
why. 130: interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from cogvideo.errors import Cancelled, CogVideoError


@dataclass(frozen=True)
class Command:
    """A word of the command line and the module whose `main(arguments) -> int | None` it calls."""

    module: str
    zh: str
    en: str


COMMANDS = {
    "generate": Command("cogvideo.generate", "把一句中文变成视频文件", "turn a Chinese sentence into a video file"),
    "serve": Command("app", "在浏览器里打开网页", "open the page in a browser"),
    "download": Command(
        "cogvideo.download", "下载已发布的 94 亿参数模型", "fetch the published model of 9.4 billion parameters"
    ),
    "convert": Command(
        "cogvideo.convert", "把已下载的模型转成加载更快的格式", "make a copy of the published model that loads faster"
    ),
    "parity": Command("cogvideo.parity", "与原版的数值逐项比较", "compare every number with the original release"),
    "prepare": Command(
        "cogvideo.prepare", "把视频和说明变成训练数据", "turn videos with captions into rows to train on"
    ),
    "train": Command(
        "cogvideo.train", "按配方训练模型，可中断并继续", "train a model from a recipe; may be stopped and resumed"
    ),
    "bench": Command(
        "cogvideo.bench", "测量每一步的速度，与机器的极限比较", "time each stage, beside the limits of the machine"
    ),
    "evaluate": Command("cogvideo.evaluate", "检验训练的结果", "judge what was trained"),
}


def usage() -> str:
    """The page that `--help` prints."""
    rows = "\n".join(f"  {name:9} {command.en}\n            {command.zh}" for name, command in COMMANDS.items())
    return f"""CogVideo: 中文文字变视频 / Chinese text becomes video

Usage: python -m cogvideo COMMAND [options]

{rows}

Try:
  python -m cogvideo generate "一只熊猫在草地上向右跑" --seed 7 --frames 33 --out panda.mp4
  python -m cogvideo COMMAND --help        what a command takes / 查看某个命令的参数
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status; `arguments` are the words after `python -m cogvideo`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        print(_unknown(words[0]), file=sys.stderr)
        return 2
    return _call(command, words)


def _call(command: Command, words: list[str]) -> int:
    try:
        return importlib.import_module(command.module).main(words[1:]) or 0
    except CogVideoError as error:
        print(f"{error.zh}\n{error.en}", file=sys.stderr)
        return 2
    except (Cancelled, KeyboardInterrupt):
        return 130


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f" {near[0]}?" if near else ""
    known = ", ".join(COMMANDS)
    return f"没有命令 {word!r}。{hint} 可用的命令：{known}\nThere is no command {word!r}.{hint} There are: {known}"


if __name__ == "__main__":
    sys.exit(main())
