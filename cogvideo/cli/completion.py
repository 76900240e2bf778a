"""`python -m cogvideo completion SHELL`: a script for the shell, made from the commands' own parsers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cogvideo.cli import console

SHELLS = ("bash", "zsh", "fish", "tcsh")

DESCRIPTION = """\
输出补全脚本，用 Tab 键补全命令和参数。
Prints a script with which the Tab key completes commands and options.

  bash:  cogvideo completion bash > ~/.local/share/bash-completion/completions/cogvideo
  zsh:   cogvideo completion zsh > "${fpath[1]}/_cogvideo"
  fish:  cogvideo completion fish > ~/.config/fish/completions/cogvideo.fish"""


def main(arguments: Sequence[str]) -> int:
    """Prints the script and returns 0."""
    import shtab

    options = _parser().parse_args(arguments)
    print(shtab.complete(whole(), shell=options.shell))
    return console.DONE


def whole() -> argparse.ArgumentParser:
    """One parser with all commands in it. Takes seconds, since it loads all of them."""
    from cogvideo.cli.commands import COMMANDS

    parser = argparse.ArgumentParser(prog="cogvideo", description="中文文字变视频 / Chinese text becomes video")
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", parser_class=argparse.ArgumentParser)
    for name, command in COMMANDS.items():
        one = command.parser()
        commands.add_parser(name, help=command.en, description=one.description, parents=[one], add_help=False)
    return parser


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser("completion", description=DESCRIPTION)
    parser.add_argument("shell", choices=SHELLS)
    return parser
