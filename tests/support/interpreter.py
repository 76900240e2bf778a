"""Triton in its interpreter, in a process of its own: it decides at import whether it interprets. No tests here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton exists for Linux only")


def interpreted(program: str) -> Any:
    """The JSON that a program of tests/ prints where every Triton kernel runs on the CPU."""
    answer = subprocess.run(
        [sys.executable, f"tests/support/{program}"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)
