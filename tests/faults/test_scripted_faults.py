"""Every fault of `python -m scripts.faults`, a few times each: the outcome is the one that was said beforehand."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.faults.__main__ import DOCUMENTS, FAULTS, RECORD
from scripts.faults.report import MARKS, Counts, Fault, expect, in_chinese, play, read, row, table, tell, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_has_expected_outcome(fault: Fault) -> None:
    outcome = play(fault, fault.small)
    assert not outcome.wrong
    assert outcome.counts


def test_unexpected_outcome_is_reported_and_counted() -> None:
    def goes_wrong(folder: Path, times: int) -> Counts:
        expect(times < 2, "twice is too often")
        return Counts(times=times)

    fault = Fault("a fault", "nothing", "没有", goes_wrong, 1, 2)
    assert play(fault, 1).counts == {"times": 1} and not play(fault, 1).wrong
    assert "**unexpected**: twice is too often" in row(fault, play(fault, 2))


def test_documents_contain_recorded_counts() -> None:
    counted = read(RECORD)
    assert not [outcome for outcome in counted if outcome.wrong]
    assert {outcome.name for outcome in counted} <= {fault.name for fault in FAULTS}
    for document in DOCUMENTS:
        chinese = document.stem.endswith("_zh")
        assert f"{MARKS[0]}\n{table(FAULTS, counted, chinese)}\n{MARKS[1]}" in document.read_text("utf-8")
    words = {in_chinese(name) for outcome in counted for name in outcome.counts}
    assert not [word for word in words if re.fullmatch(r"[ -~]+", word)]  # all have Chinese letters


def test_partial_runs_are_merged_into_one_record(tmp_path: Path) -> None:
    fault = Fault("a fault", "nothing", "没有", lambda folder, times: Counts(found=times), 1, 2)
    other = replace(fault, name="another")
    for outcome in (play(fault, 1), play(other, 1), play(fault, 2)):
        write(tmp_path / "record.json", [outcome])
    told = table([other, fault], read(tmp_path / "record.json"), chinese=True)
    assert told.index("another") < told.index("a fault") and "| 没有 | 2 | 找到 2 |" in told
    (tmp_path / "document.md").write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    tell(tmp_path / "document.md", told)
    assert (tmp_path / "document.md").read_text() == f"before\n{MARKS[0]}\n{told}\n{MARKS[1]}\nafter\n"


def test_faults_can_be_chosen_by_name() -> None:
    command = [sys.executable, "-m", "scripts.faults", "--only", "impossible ports"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "taken: said" in answer.stdout and "kill -9" not in answer.stdout
