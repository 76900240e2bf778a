"""What a fault is, and the table of what came of it. Each fault says beforehand what is to be expected."""

from __future__ import annotations

import json
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

Counts = Counter[str]


class Unexpected(AssertionError):
    """The outcome was not the one that was expected."""


def expect(true: object, words: str) -> None:
    """Raises Unexpected with `words` unless `true`."""
    if not true:
        raise Unexpected(words)


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong on purpose.

    `run`: (an empty folder, how many times) -> what was counted; raises Unexpected. `small`: times in the tests;
    `full`: by hand.
    """

    name: str
    expected: str
    run: Callable[[Path, int], Counts]
    small: int
    full: int


@dataclass(frozen=True)
class Outcome:
    """What came of one fault. `wrong` is empty where everything was as expected."""

    name: str
    expected: str
    counts: dict[str, int]
    seconds: float
    wrong: str = ""


def play(fault: Fault, times: int) -> Outcome:
    """One fault in a folder of its own."""
    began = time.monotonic()
    counts, wrong = Counts(), ""
    with tempfile.TemporaryDirectory(prefix="cogvideo-fault-") as folder:
        try:
            counts = fault.run(Path(folder), times)
        except Unexpected as error:
            wrong = str(error)
        except Exception:
            wrong = traceback.format_exc(limit=-4)
    return Outcome(fault.name, fault.expected, dict(counts), round(time.monotonic() - began, 1), wrong)


def row(outcome: Outcome) -> str:
    """One line of a Markdown table."""
    counts = ", ".join(f"{count} {name}" for name, count in outcome.counts.items())
    said = " ".join(outcome.wrong.split())[-300:].replace("|", "/")
    verdict = f"**unexpected**: {said}" if outcome.wrong else "as expected"
    return f"| {outcome.name} | {outcome.expected} | {counts} | {verdict} | {outcome.seconds:g} s |"


def heading() -> str:
    return "| fault | expected | counts | outcome | time |\n|---|---|---|---|---|"


def to_json(outcomes: Sequence[Outcome]) -> str:
    return json.dumps([asdict(outcome) for outcome in outcomes], indent=1, ensure_ascii=False)
