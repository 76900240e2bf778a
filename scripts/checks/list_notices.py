"""Lists the packages that an installation brings along and their licences, for THIRD_PARTY.md.

python scripts/checks/list_notices.py rewrites the table between the two marks of that file, from requirements.txt and
what is installed where it runs: requirements with the versions that they are held to, and everything that they need.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "THIRD_PARTY.md"
BEGIN, END = "<!-- packages: begin -->\n", "<!-- packages: end -->\n"

CLASSIFIER = "License :: OSI Approved :: "


def requirements() -> list[Requirement]:
    """What requirements.txt asks for, on this system."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return [one for one in wanted if one.marker is None or one.marker.evaluate()]


def closure(roots: list[Requirement]) -> dict[NormalizedName, Distribution]:
    """Canonical name -> distribution, of everything that `roots` need here."""
    found: dict[NormalizedName, Distribution] = {}
    waiting = [(root.name, frozenset(root.extras)) for root in roots]
    seen: set[tuple[NormalizedName, frozenset[str]]] = set()
    while waiting:
        name, extras = waiting.pop()
        key = (canonicalize_name(name), extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            found[key[0]] = here = distribution(name)
        except PackageNotFoundError:
            continue
        waiting.extend((one.name, frozenset(one.extras)) for one in needs(here, extras))
    return found


def needs(here: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    """What a distribution asks for on this system, with the extras that it was asked for with."""
    for text in here.requires or ():
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield one


def licence(here: Distribution) -> str:
    """As short as the metadata allows: an SPDX expression, else the classifiers, else its first line."""
    metadata = here.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = [c for c in metadata.get_all("Classifier") or () if c.startswith("License :: ")]
    if not classifiers:
        first = "".join(metadata.get_all("License") or ()).strip().splitlines()
        return first[0][:60] if first else "see the package"
    names = (c.removeprefix(CLASSIFIER).removeprefix("License :: ") for c in classifiers)
    return ", ".join(re.sub(r" \(.*\)$", "", name) for name in names)


def table() -> str:
    """The rows of the packages: those that requirements.txt names with their version, then the rest."""
    roots = requirements()
    pins = {canonicalize_name(root.name): str(root.specifier) for root in roots}
    found = closure(roots)
    rows = ["| package | licence |", "|---|---|"]
    for name in sorted(found, key=lambda one: (one not in pins, one)):
        here = found[name]
        label = str(here.metadata["Name"])
        rows.append(f"| {f'**{label}** {pins[name]}' if name in pins else label} | {licence(here)} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    text = FILE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    FILE.write_text(before + BEGIN + table() + END + rest.split(END)[1], encoding="utf-8")
    sys.stdout.write(f"{FILE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
