"""`python -m cogvideo COMMAND ...`, or `cogvideo COMMAND ...` if installed: dispatch of commands and their errors.

A command's module is imported only when the command runs. `console` lists the exit statuses.
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
    """Return the text of `--help`."""
    rows = "\n".join(f"  {name:10} {command.en}\n             {command.zh}" for name, command in COMMANDS.items())
    program = console.program_name()
    return f"""CogVideo {__version__}: 中文文字生成视频 / Chinese text to video

Usage: {program} COMMAND [options]

{rows}

Examples:
  {program} generate "一只熊猫在草地上向右跑" --seed 7 --frames 33 --output panda.mp4
  {program} COMMAND --help        options of a command / 查看某个命令的参数

Exit status / 退出码: 0 success; 1 a check failed (parity, doctor, memory); 2 invalid request or insufficient resources;
70 internal error; 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. `argv`: default: the arguments of this process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return console.DONE
    if arguments[0] in ("--version", "-V"):
        print(f"cogvideo {__version__}")
        return console.DONE
    command = COMMANDS.get(arguments[0])
    if command is None:
        print(_unknown_command(arguments[0]), file=sys.stderr)
        return console.REQUEST_ERROR
    return _run(command, arguments[1:])


def _run(command: Command, argv: list[str]) -> int:
    """Run a command; print its errors and return the exit status."""
    try:
        status = command.main(argv)
        sys.stdout.flush()  # here, so that a closed pipe raises inside this block
        return status
    except CogVideoError as error:
        print(f"{error.zh}\n{error.en}", file=sys.stderr)
        return console.failed(error, console.REQUEST_ERROR, argv)
    except (Cancelled, KeyboardInterrupt):
        return console.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return console.CLOSED
    except Exception as error:
        traceback.print_exc()
        print(
            "程序内部错误，请将以上信息提交为 issue。\nInternal error: please report it as an issue.", file=sys.stderr
        )
        return console.failed(error, console.FAULT, argv)


def _unknown_command(name: str) -> str:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    known = ", ".join(COMMANDS)
    zh = f"您是不是要输入 {near[0]}？" if near else ""
    en = f" Did you mean {near[0]}?" if near else ""
    return f"未知命令 {name!r}。{zh}可用的命令：{known}\nUnknown command {name!r}.{en} Available: {known}"
