"""Every fault of `python -m scripts.faults`, a few times each: the outcome is the one that was said beforehand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.faults.__main__ import FAULTS
from scripts.faults.report import Counts, Fault, expect, play, row

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_it_ends_as_expected(fault: Fault) -> None:
    outcome = play(fault, fault.small)
    assert not outcome.wrong
    assert outcome.counts


def test_an_unexpected_outcome_is_said_and_counted() -> None:
    def goes_wrong(folder: Path, times: int) -> Counts:
        expect(times < 2, "twice is too often")
        return Counts(times=times)

    fault = Fault("a fault", "nothing", goes_wrong, 1, 2)
    assert play(fault, 1).counts == {"times": 1} and not play(fault, 1).wrong
    assert "twice is too often" in row(play(fault, 2))


def test_faults_can_be_chosen_by_name() -> None:
    command = [sys.executable, "-m", "scripts.faults", "--only", "impossible ports"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "as expected" in answer.stdout and "kill -9" not in answer.stdout
