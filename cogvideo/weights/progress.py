"""Progress of transfers: a bar on a terminal, a line every `LOG_SECONDS` in a log, or calls of a function.

`bars(report)` returns a subclass of tqdm, so that huggingface_hub can use it too.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

LOG_SECONDS: Final = 20.0
"""Seconds between two lines of a log."""


@dataclass(frozen=True)
class Transfer:
    """Progress of the file `name` in bytes; `total` and `seconds_left` are None if unknown."""

    name: str
    done: int
    total: int | None
    seconds_left: float | None


Report = Callable[[Transfer], None]


def bars(report: Report | None = None) -> Any:
    """Return a class of progress bars that count bytes, with the interface of tqdm."""
    from tqdm import tqdm

    class Bytes(tqdm):
        """Progress bar over bytes; it calls `report`, if given, instead of printing."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            drawn = report is None and sys.stderr.isatty()
            usual = {"unit": "B", "unit_scale": True, "dynamic_ncols": drawn}
            if not drawn:
                usual |= {"file": io.StringIO(), "mininterval": 0.2 if report else LOG_SECONDS}
            self._drawn = drawn
            super().__init__(*arguments, **(usual | options | {"disable": False}))

        def display(self, msg: str | None = None, pos: int | None = None) -> bool:
            if self._drawn:
                return bool(super().display(msg, pos))
            if report is not None:
                report(_transfer(self))
            elif self.n:
                print(self, file=sys.stderr, flush=True)
            return True

    return Bytes


def _transfer(bar: Any) -> Transfer:
    rate, total = bar.format_dict["rate"], int(bar.total) if bar.total else None
    left = (total - bar.n) / rate if rate and total else None
    return Transfer(str(bar.desc or "").removesuffix(": "), int(bar.n), total, left)
