"""How far a long transfer is: a bar on a terminal, a line now and then in a log, or a call for whoever draws it.

`bars(report)` is a class of tqdm, so that huggingface_hub can use it as well.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

LOG_SECONDS: Final = 20.0
"""Between two lines of a log."""


@dataclass(frozen=True)
class Transfer:
    """`done` of `total` bytes of `name`; `total` and `seconds_left` are None while nobody knows."""

    name: str
    done: int
    total: int | None
    seconds_left: float | None


Report = Callable[[Transfer], None]


def bars(report: Report | None = None) -> Any:
    """A class of progress bars over bytes: desc=..., total=..., initial=... -> a bar with `update(bytes)`."""
    from tqdm import tqdm

    class Bytes(tqdm):
        """Where `report` is given nothing is printed."""

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
