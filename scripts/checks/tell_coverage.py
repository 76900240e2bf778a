"""What `make coverage` found, into CONTRIBUTING.md and its Chinese twin: lines and branches, for each part of the code.

python scripts/checks/tell_coverage.py [--json FILE]. Reads `.coverage`, or the JSON report of `coverage json` that is
named.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MARKS = "<!-- coverage -->", "<!-- /coverage -->"
DOCUMENTS = {
    "CONTRIBUTING.md": ("part", "lines", "branches", "together"),
    "CONTRIBUTING_zh.md": ("部分", "行", "分支", "合计"),
}

Sums = dict[str, int]


def parts(report: dict[str, Any]) -> dict[str, Sums]:
    """Sums of the counts of all files of a part (`app.py`, `kernels`, a package of `cogvideo`), then of everything."""
    found: dict[str, Sums] = defaultdict(lambda: defaultdict(int))
    here = {path: file for path, file in report["files"].items() if not Path(path).is_absolute()}
    for path, file in sorted(here.items()):  # others are copies that a test installed elsewhere
        for part in (str(Path(path).parent) if "/" in path else path, "**all**"):
            for name in ("num_statements", "covered_lines", "num_branches", "covered_branches"):
                found[part][name] += file["summary"][name]
    found["**all**"] = found.pop("**all**")  # last
    return found


def table(report: dict[str, Any], words: tuple[str, ...]) -> str:
    """A Markdown table of percentages, and the day of the report."""
    rows = [f"| {' | '.join(words)} |", "|---" * len(words) + "|"]
    for part, sums in parts(report).items():
        lines = sums["covered_lines"], sums["num_statements"]
        branches = sums["covered_branches"], sums["num_branches"]
        both = lines[0] + branches[0], lines[1] + branches[1]
        shown = part if part.startswith("*") else f"`{part}`"
        rows.append(f"| {shown} | {' | '.join(_percent(*pair) for pair in (lines, branches, both))} |")
    return "\n".join([*rows, "", f"{report['meta']['timestamp'][:10]}"])


def _percent(some: int, of: int) -> str:
    return f"{100 * some / of:.1f} % ({some:,} / {of:,})" if of else "—"


def tell(folder: Path, report: dict[str, Any]) -> None:
    """Puts the table between the marks of both documents of a folder."""
    for name, words in DOCUMENTS.items():
        before, rest = (folder / name).read_text("utf-8").split(MARKS[0])
        text = f"{before}{MARKS[0]}\n{table(report, words)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"
        (folder / name).write_text(text, encoding="utf-8")


def read() -> dict[str, Any]:
    """The report of the last run. Raises CalledProcessError where there was none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", str(file)], cwd=ROOT, check=True)
        report: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return report


def main() -> int:
    """Writes the documents; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="a report that `coverage json` wrote")
    options = parser.parse_args()
    report = json.loads(options.json.read_text("utf-8")) if options.json else read()
    report.setdefault("meta", {}).setdefault("timestamp", f"{datetime.now(UTC):%Y-%m-%d}")
    tell(ROOT, report)
    print(table(report, DOCUMENTS["CONTRIBUTING.md"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
