"""What the build 0a8de33 has written: tests/compat, whose README says how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[1] / "compat"


def read(name: str) -> Any:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


KEY: str = read("jobs.json")["key"]
"""Of who asked for the jobs in `server`."""
JOBS: dict[str, Any] = read("jobs.json")["jobs"]
