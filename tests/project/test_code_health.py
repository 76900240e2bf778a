"""Dead code is found, an audit that could not be made is no clean bill, and mutants are really tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.checks import audit, mutation, tell_coverage

ROOT = Path(__file__).resolve().parents[2]


def package(name: str, **said: object) -> dict[str, object]:
    return {"name": name, "version": "1.0", "vulns": [], **said}


HOLE = {"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (None, 2, "nothing is known"),
        ([], 2, "0 packages"),
        ([package("a"), package("b")], 0, "2 packages, 0 vulnerable, 0 could not be looked up"),
        ([package("a"), package("b", skip_reason="not found")], 2, "1 could not be looked up"),
        ([package("a", vulns=[HOLE]), package("b", skip_reason="?")], 1, "a 1.0: PYSEC-1, fixed in 1.1"),
    ],
)
def test_only_a_complete_audit_is_a_clean_bill(said: list[dict[str, object]] | None, status: int, words: str) -> None:
    found, sentence = audit.judge(said)
    assert found == status and words in sentence


def test_what_is_installed_is_listed_without_local_labels() -> None:
    pins = audit.installed()
    assert any(pin.startswith("torch==2.") for pin in pins) and not [pin for pin in pins if "+" in pin]


def test_no_code_is_dead() -> None:
    answer = subprocess.run([sys.executable, "-m", "vulture"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_annotations_are_no_mutants_and_nonsense_is_none() -> None:
    meaning = mutation._meaning("def f(a: int) -> int:\n    return a + 1\n")
    assert meaning == mutation._meaning("def f(a: str | None):\n    return a + 1\n")
    assert meaning != mutation._meaning("def f(a: int) -> int:\n    return a - 1\n")
    assert mutation._meaning("Stage = Literal[1, 2]") == mutation._meaning("Stage = Literal[1, 3]")
    assert mutation._meaning("stage = stages[1, 2]") != mutation._meaning("stage = stages[1, 3]")
    assert mutation._meaning("def f(:") is None


def test_likely_slips_are_tried_and_unlikely_ones_only_on_demand() -> None:
    assert mutation.wanted("core/ReplaceBinaryOperator_Add_Sub")
    assert mutation.wanted("core/NumberReplacer")
    assert not mutation.wanted("core/ReplaceBinaryOperator_Add_LShift")


def test_coverage_is_summed_by_parts_and_told_in_both_languages(tmp_path: Path) -> None:
    def file(lines: int, covered: int, branches: int, taken: int) -> dict[str, dict[str, int]]:
        counts = dict(num_statements=lines, covered_lines=covered, num_branches=branches, covered_branches=taken)
        return {"summary": counts}

    files = {"cogvideo/b.py": file(10, 9, 0, 0), "app.py": file(30, 30, 4, 2), "cogvideo/a.py": file(10, 6, 6, 3)}
    files["/elsewhere/app.py"] = file(30, 0, 0, 0)  # a copy that was installed counts for nothing
    report = {"files": files, "meta": {"timestamp": "2026-11-22T10:00:00"}}
    for name in tell_coverage.DOCUMENTS:
        (tmp_path / name).write_text(f"a\n{tell_coverage.MARKS[0]}\nold\n{tell_coverage.MARKS[1]}\nz\n")
    tell_coverage.tell(tmp_path, report)
    told = (tmp_path / "CONTRIBUTING.md").read_text()
    assert "| `cogvideo` | 75.0 % (15 / 20) | 50.0 % (3 / 6) | 69.2 % (18 / 26) |" in told
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert rows[-1].startswith("| **all** | 90.0 % (45 / 50) | 50.0 % (5 / 10) |")
    assert "old" not in told and "2026-11-22" in told and told.endswith("\nz\n")
    assert "| 部分 | 行 | 分支 |" in (tmp_path / "CONTRIBUTING_zh.md").read_text()


@pytest.mark.parametrize(
    ("version", "found"), [("1.0", True), ("1.4.9", True), ("1.5", False), ("2.0", True), ("2.1", False), ("0.9", True)]
)
def test_a_clone_of_the_advisories_is_looked_up(tmp_path: Path, version: str, found: bool) -> None:
    folder = tmp_path / "vulns" / "thing"
    folder.mkdir(parents=True)
    (folder / "PYSEC-1.yaml").write_text(
        "id: PYSEC-1\naffected:\n- ranges:\n  - type: ECOSYSTEM\n    events:\n"
        "    - introduced: '1.0'\n    - fixed: '1.5'\n    - introduced: '2.0'\n    - fixed: '2.1'\n"
        "  - type: GIT\n    events:\n    - introduced: '0'\n  versions:\n  - '0.9'\n"
    )
    said = audit.look_up([f"thing=={version}", "other==1.0"], tmp_path)
    status, words = audit.judge(said)
    assert status == (1 if found else 0)
    assert (f"thing {version}: PYSEC-1, fixed in 1.5, 2.1" in words) == found
    assert words.endswith(f"2 packages, {int(found)} vulnerable, 0 could not be looked up.")
