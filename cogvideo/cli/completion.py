"""`python -m cogvideo completion SHELL`: a completion script, made from the parsers of all commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cogvideo.cli import console

SHELLS = ("bash", "zsh", "fish", "tcsh")

DESCRIPTION = """\
输出补全脚本，用 Tab 键补全命令和参数。
Print a script that completes commands and options with the Tab key.

  bash:  cogvideo completion bash > ~/.local/share/bash-completion/completions/cogvideo
  zsh:   cogvideo completion zsh > "${fpath[1]}/_cogvideo"
  fish:  cogvideo completion fish > ~/.config/fish/completions/cogvideo.fish"""


def main(argv: Sequence[str]) -> int:
    """Print the script and return 0."""
    import shtab

    options = parser().parse_args(argv)
    print(shtab.complete(_program_parser(), shell=options.shell))
    return console.DONE


def parser() -> console.Parser:
    """Return the parser of this command."""
    root = console.Parser("completion", description=DESCRIPTION)
    root.add_argument("shell", choices=SHELLS)
    return root


def _program_parser() -> argparse.ArgumentParser:
    """Return one parser with all commands as sub-parsers. Takes seconds, since it imports all of them.

    `main.main` therefore does not use it: it imports only the command that runs.
    """
    from cogvideo.cli.commands import COMMANDS

    root = argparse.ArgumentParser(prog="cogvideo", description="中文文字生成视频 / Chinese text to video")
    root.add_argument("--version", action="store_true", help="print the version")
    subparsers = root.add_subparsers(dest="command", parser_class=argparse.ArgumentParser)
    for name, command in COMMANDS.items():
        parent = command.parser()
        subparsers.add_parser(name, help=command.en, description=parent.description, parents=[parent], add_help=False)
    return root
