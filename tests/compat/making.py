"""What the scripts of this folder share: a command of 0a8de33 is called, JSON is written."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PANDA, CAR, BOAT = "一只熊猫在草地上向右跑", "一只汽车在雪地上旋转", "一只小猫在夜空上向左跑"
MODEL = "../training/run/model"
BATCH = ("generate", "--input-source", "prompts.txt", "--model", MODEL, "--no-superres", "--quiet")


def write_json(path: str, value: Any) -> None:
    Path(path).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def inside(folder: str) -> Iterator[None]:
    Path(folder).mkdir(exist_ok=True)
    with contextlib.chdir(folder):
        yield


def command(*argv: str, wanted: int = 0) -> str:
    """Standard output of a command, which must end with the status `wanted`."""
    from cogvideo.__main__ import main as cogvideo

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = cogvideo(list(argv))
    if status != wanted:
        raise SystemExit(f"{argv}: status {status}, not {wanted}")
    return out.getvalue()
