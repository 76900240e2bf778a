"""Command output: bilingual text, or JSON Lines with `--json`.

Every line has the key "type": `note`, `loading`, `progress`, `keyframe`, `round`, `stage`, `figures`, `file`, `check`,
and at last `result` or `error`. docs/command-line.md lists their keys. Keys are added, never renamed.
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
from cogvideo.messages import message

DONE: Final = 0
CHECK_FAILED: Final = 1
"""The command ran, and a check failed: values differ, or the machine lacks something."""
REQUEST_ERROR: Final = 2
"""Invalid request or insufficient resources; the message states the cause and the fix."""
FAULT: Final = 70
"""Internal error; a traceback was printed."""
INTERRUPTED: Final = 130
CLOSED: Final = 141
"""The reader of standard output closed the pipe."""

OLD_EVENTS: Final = {"round": "level", "check": "finding", "result": "done"}
"""Value of "event", the key of version 0.1, if it differs from "type"."""
OLD_STATES: Final = {"error": "bad"}

_json_stream: TextIO | None = None
"""Where events are written; None without --json."""


class Parser(argparse.ArgumentParser):
    """The parser of one command. Wrong arguments raise RequestError.

    Options cannot be abbreviated: a new option must not change the meaning of a script.
    """

    def __init__(self, command: str, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        options.setdefault("prog", f"{program_name()} {command}")
        super().__init__(allow_abbrev=False, **options)

    def error(self, problem: str) -> NoReturn:
        raise RequestError(*message("console.wrong_arguments", problem=problem))


def program_name() -> str:
    """Return how the program was started: `cogvideo` if installed, otherwise `python -m cogvideo`."""
    return "cogvideo" if Path(sys.argv[0]).stem == "cogvideo" else "python -m cogvideo"


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add the option --json."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="events for scripts, a JSON object a line on standard output / 每行一个 JSON 事件",
    )


@contextmanager
def json_output(enabled: bool) -> Iterator[None]:
    """If `enabled`, write events to standard output inside the block, and everything that is printed to stderr."""
    global _json_stream
    if not enabled or _json_stream is not None:
        yield
        return
    _json_stream = sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_stream = None


def event(name: str, /, **values: object) -> None:
    """Write an event of the type `name`; nothing without --json. Paths become strings."""
    if _json_stream is not None:
        line = _with_old_keys(name, values)
        print(json.dumps(line, ensure_ascii=False, default=str), file=_json_stream, flush=True)


def _with_old_keys(name: str, values: dict[str, object]) -> dict[str, object]:
    """Return the event's keys, and those of version 0.1 beside them."""
    line = {"type": name, "event": OLD_EVENTS.get(name, name), **values}
    if name == "round":
        line["level"] = values["round"]
    elif name == "check":
        status = str(values["status"])
        line["state"] = OLD_STATES.get(status, status)
    return line


def failed(error: Exception, status: int, argv: Sequence[str]) -> int:
    """Write an error event if `argv`, which may not be parsed yet, contains --json. Returns `status`."""
    zh, en = (error.zh, error.en) if isinstance(error, CogVideoError) else (str(error), str(error))
    with json_output("--json" in argv):
        event("error", kind=type(error).__name__, zh=zh, en=en, exit=status)
    return status


def notice(zh: str, en: str) -> None:
    """Print a message beside the result."""
    event("note", zh=zh, en=en)
    print(f"{zh}\n{en}", file=sys.stderr)


class Percent:
    """Writes progress events, at most one for each percent of a stage."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def progress(self, stage: str, done: int, total: int) -> None:
        """Write an event if the percentage or the stage has changed."""
        step = stage, 100 * done // total
        if step != self._last:
            self._last = step
            event("progress", stage=stage, done=done, total=total)
