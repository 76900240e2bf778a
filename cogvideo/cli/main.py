"""`python -m cogvideo COMMAND ...`, or `cogvideo COMMAND ...` where it is installed: the command line.

In: the words after it. Out: an exit status, which `console` names. Each command is imported when it is called: a module
with `main(words) -> int | None`; the shell's completion is made from the commands' parsers.
"""

from __future__ import annotations

import difflib
import os
import sys
import traceback
from collections.abc import Sequence

from cogvideo import __version__
from cogvideo.cli import console
from cogvideo.cli.commands import COMMANDS, Command
from cogvideo.errors import Cancelled, CogVideoError


def usage() -> str:
    """The page that `--help` prints."""
    rows = "\n".join(f"  {name:10} {command.en}\n             {command.zh}" for name, command in COMMANDS.items())
    typed = console.program_name()
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
        return console.REQUEST_ERROR
    return _call(command, words[1:])


def _call(command: Command, words: list[str]) -> int:
    try:
        status = command.main(words)
        sys.stdout.flush()  # here, where a reader that went away can still be told from a fault
        return status
    except CogVideoError as error:
        print(f"{error.zh}\n{error.en}", file=sys.stderr)
        return console.failed(error, console.REQUEST_ERROR, words)
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
