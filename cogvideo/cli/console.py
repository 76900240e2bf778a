"""How a command speaks: in two languages to a person, or with --json as one JSON object a line to a program. No torch.

Every line has the key "event": `note`, `loading`, `progress`, `keyframe`, `level`, `stage`, `file`, at last `done` or
`error`. docs/command-line.md says what else is in them; keys are added, never renamed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

from cogvideo.errors import CogVideoError, RequestError

DONE: Final = 0
CHECK_FAILED: Final = 1
"""The work was done and the answer is no: numbers differ, or this machine lacks something."""
REQUEST_ERROR: Final = 2
"""The request or the machine will not do; a sentence said why."""
FAULT: Final = 70
"""A fault of this program; a traceback was printed."""
INTERRUPTED: Final = 130
CLOSED: Final = 141
"""Whoever read the output went away."""

_program: TextIO | None = None
"""Where a program reads events; None while a person listens."""


class Parser(argparse.ArgumentParser):
    """The words of one command; wrong ones end in one sentence in two languages, as all mistakes do.

    Options are never abbreviated: a script should not change its meaning when an option is added.
    """

    def __init__(self, command: str, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("prog", f"{program_name()} {command}")
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise RequestError(
            f"参数有误（{message}）：加 --help 查看用法。", f"Wrong arguments: {message}. See --help for how to use it."
        )


def program_name() -> str:
    """What was typed to get here: `cogvideo` where it is installed, else `python -m cogvideo`."""
    return "cogvideo" if Path(sys.argv[0]).stem == "cogvideo" else "python -m cogvideo"


def add_json(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        help="events for scripts, a JSON object a line on standard output / 每行一个 JSON 事件",
    )


@contextmanager
def json_output(to_program: bool) -> Iterator[None]:
    """Inside the block, where `to_program`, events go to standard output and all that is printed goes to stderr."""
    global _program
    if not to_program or _program is not None:
        yield
        return
    _program = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _program = None


def event(name: str, **values: object) -> None:
    """A line for a program; nothing where a person listens. Paths become strings."""
    if _program is not None:
        print(json.dumps({"event": name, **values}, ensure_ascii=False, default=str), file=_program, flush=True)


def failed(error: Exception, status: int, words: Sequence[str]) -> int:
    """Returns `status`; a program that asked for events, in `words` that nobody may have parsed, hears of the error."""
    zh, en = (error.zh, error.en) if isinstance(error, CogVideoError) else (str(error), str(error))
    with json_output("--json" in words):
        event("error", kind=type(error).__name__, zh=zh, en=en, exit=status)
    return status


def notice(zh: str, en: str) -> None:
    """A sentence beside the result."""
    event("note", zh=zh, en=en)
    print(f"{zh}\n{en}", file=sys.stderr)


class Percent:
    """Passes on a step where a whole percent of it is new: a program need not hear of every token."""

    def __init__(self) -> None:
        self._told: tuple[str, int] | None = None

    def progress(self, stage: str, done: int, total: int) -> None:
        step = stage, 100 * done // total
        if step != self._told:
            self._told = step
            event("progress", stage=stage, done=done, total=total)
