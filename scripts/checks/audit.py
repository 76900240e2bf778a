"""Known vulnerabilities of what is installed, by pip-audit; honest where no database of them could be asked.

python scripts/checks/audit.py [--service pypi|osv] [--advisories FOLDER]. Exit status 0: all packages were looked up
and none is known to be vulnerable; 1: some are; 2: some or all could not be looked up, which proves nothing. FOLDER: a
clone of https://github.com/pypa/advisory-database, for machines that reach no service; it knows what was known when it
was made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from packaging.version import Version


def installed() -> list[str]:
    """`name==version` of every distribution, without local labels such as +cpu, which no database knows."""
    found: dict[str, str] = {}
    for distribution in distributions():  # the first of a name is the one that is imported
        found.setdefault(distribution.name.lower().replace("_", "-"), distribution.version.split("+")[0])
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def ask(pins: list[str], service: str) -> list[dict[str, Any]] | None:
    """What the database says of each of `pins`; None where it could not be asked."""
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "pins.txt"
        listed.write_text("\n".join(pins) + "\n")
        words = ["-r", str(listed), "--no-deps", "--disable-pip", "-f", "json", "-s", service]
        command = [sys.executable, "-m", "pip_audit", *words, "--progress-spinner", "off"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        said: list[dict[str, Any]] = json.loads(answer.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(answer.stderr.strip().splitlines()[-1:] or ["no answer"], file=sys.stderr)
        return None
    return said


def look_up(pins: list[str], folder: Path) -> list[dict[str, Any]]:
    """The same from a clone of the Python Packaging Authority's advisories, `vulns/NAME/ID.yaml` in the OSV format."""
    said = []
    for name, _, version in (pin.partition("==") for pin in pins):
        advisories = [yaml.safe_load(path.read_text("utf-8")) for path in sorted(folder.glob(f"vulns/{name}/*.yaml"))]
        found = [advisory for advisory in advisories if any(_affects(part, version) for part in advisory["affected"])]
        vulns = [{"id": advisory["id"], "fix_versions": _fixes(advisory)} for advisory in found]
        said.append({"name": name, "version": version, "vulns": vulns})
    return said


def _affects(part: dict[str, Any], version: str) -> bool:
    """Whether a version is listed, or lies between where a hole was introduced and where it was fixed."""
    if version in part.get("versions", ()):
        return True
    affected = False
    for event in (event for spans in _ranges(part) for event in spans):
        if "introduced" in event and Version(version) >= Version(event["introduced"]):
            affected = True
        if "fixed" in event and Version(version) >= Version(event["fixed"]):
            affected = False
    return affected


def _fixes(advisory: dict[str, Any]) -> list[str]:
    events = [event for part in advisory["affected"] for spans in _ranges(part) for event in spans]
    return [event["fixed"] for event in events if "fixed" in event]


def _ranges(part: dict[str, Any]) -> list[list[dict[str, str]]]:
    return [spans["events"] for spans in part.get("ranges", ()) if spans["type"] == "ECOSYSTEM"]


def judge(said: list[dict[str, Any]] | None) -> tuple[int, str]:
    """Exit status and a sentence for what the database said."""
    if said is None:
        return 2, "No database of vulnerabilities could be asked: nothing is known."
    unknown = [package["name"] for package in said if "skip_reason" in package]
    bad = [package for package in said if package.get("vulns")]
    lines = [
        f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability['fix_versions']) or 'no version'}"
        for package in bad
        for vulnerability in package["vulns"]
    ]
    lines.append(f"{len(said)} packages, {len(bad)} vulnerable, {len(unknown)} could not be looked up.")
    return 1 if bad else 2 if unknown or not said else 0, "\n".join(lines)


def main() -> int:
    """Asks and judges; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi", help="which database (default: pypi)")
    parser.add_argument("--advisories", type=Path, metavar="FOLDER", help="a clone of pypa/advisory-database instead")
    options = parser.parse_args()
    if options.advisories and not (options.advisories / "vulns").is_dir():
        parser.error(f"{options.advisories} is no clone of pypa/advisory-database: it has no folder vulns")
    pins, folder = installed(), options.advisories
    status, words = judge(look_up(pins, folder) if folder else ask(pins, options.service))
    print(words)
    return status


if __name__ == "__main__":
    sys.exit(main())
